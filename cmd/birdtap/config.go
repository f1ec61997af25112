package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/sendbird"
)

// envPrefix is what every variable of birdtap begins with.
const envPrefix = "BIRDTAP_"

// Config is the environment, typed. LoadConfig makes one; Validate says whether
// its values can be, and Need whether they are enough for a role.
//
// A new setting takes a field here, its check in Validate, and a row in the README.
type Config struct {
	HTTPAddr        string   `env:"HTTP_ADDR" envDefault:":8080"`
	HTTPTLSCertFile string   `env:"HTTP_TLS_CERT_FILE"`
	HTTPTLSKeyFile  string   `env:"HTTP_TLS_KEY_FILE"`
	UploadPaths     []string `env:"UPLOAD_PATHS"`

	OpsAddr      string `env:"OPS_ADDR" envDefault:"127.0.0.1:9090"`
	OpsToken     Secret `env:"OPS_TOKEN"`
	OpsTokenFile string `env:"OPS_TOKEN_FILE"`

	DataDir       string        `env:"DATA_DIR" envDefault:"./birdtap-data"`
	NATSURL       Address       `env:"NATS_URL"` // empty: the embedded queue
	NATSCredsFile string        `env:"NATS_CREDS_FILE"`
	NATSCAFile    string        `env:"NATS_CA_FILE"`
	NATSCertFile  string        `env:"NATS_CERT_FILE"`
	NATSKeyFile   string        `env:"NATS_KEY_FILE"`
	Replicas      int           `env:"REPLICAS"` // default 1 embedded, 3 on a cluster
	StreamPrefix  string        `env:"STREAM_PREFIX" envDefault:"BIRDTAP"`
	QueueMaxBytes Size          `env:"QUEUE_MAX_BYTES" envDefault:"8GiB"`
	DeadMaxBytes  Size          `env:"DEAD_MAX_BYTES" envDefault:"1GiB"`
	KeepDelivered time.Duration `env:"KEEP_DELIVERED" envDefault:"24h"`
	KeepMaxBytes  Size          `env:"KEEP_MAX_BYTES" envDefault:"1GiB"`
	Sync          string        `env:"SYNC" envDefault:"always"`

	CleverTapAccountID    string        `env:"CLEVERTAP_ACCOUNT_ID"`
	CleverTapPasscode     Secret        `env:"CLEVERTAP_PASSCODE"`
	CleverTapPasscodeFile string        `env:"CLEVERTAP_PASSCODE_FILE"`
	CleverTapURL          Address       `env:"CLEVERTAP_URL"` // default by region
	CleverTapRegion       string        `env:"CLEVERTAP_REGION"`
	CleverTapMaxInflight  int           `env:"CLEVERTAP_MAX_INFLIGHT" envDefault:"7"`
	CleverTapTimeout      time.Duration `env:"CLEVERTAP_TIMEOUT" envDefault:"30s"`
	BatchMaxRecords       int           `env:"BATCH_MAX_RECORDS" envDefault:"1000"`
	BatchMaxWait          time.Duration `env:"BATCH_MAX_WAIT" envDefault:"250ms"`
	RetryRecordFor        time.Duration `env:"RETRY_RECORD_FOR" envDefault:"1h"`
	DedupWindow           time.Duration `env:"DEDUP_WINDOW" envDefault:"2m"`

	IdentityUnmapped string `env:"IDENTITY_UNMAPPED" envDefault:"pass"`

	SendbirdAppID                  string   `env:"SENDBIRD_APP_ID"`
	SendbirdNotificationsToken     Secret   `env:"SENDBIRD_NOTIFICATIONS_TOKEN"`
	SendbirdNotificationsTokenFile string   `env:"SENDBIRD_NOTIFICATIONS_TOKEN_FILE"`
	SendbirdNotificationsURL       Address  `env:"SENDBIRD_NOTIFICATIONS_URL"` // default by application id
	SendbirdUploadHosts            []string `env:"SENDBIRD_UPLOAD_HOSTS" envDefault:".amazonaws.com"`

	SendbirdAPIToken      Secret  `env:"SENDBIRD_API_TOKEN"`
	SendbirdAPITokenFile  string  `env:"SENDBIRD_API_TOKEN_FILE"`
	SendbirdChatURL       Address `env:"SENDBIRD_CHAT_URL"` // default by application id
	SendbirdDeskToken     Secret  `env:"SENDBIRD_DESK_TOKEN"`
	SendbirdDeskTokenFile string  `env:"SENDBIRD_DESK_TOKEN_FILE"`
	SendbirdDeskURL       Address `env:"SENDBIRD_DESK_URL"` // default by application id

	SenderTokens     Secret        `env:"SENDER_TOKENS"` // comma list
	SenderTokensFile string        `env:"SENDER_TOKENS_FILE"`
	GatherWait       time.Duration `env:"GATHER_WAIT" envDefault:"30s"`

	SendbirdSigningKeys     Secret `env:"SENDBIRD_SIGNING_KEYS"` // comma list
	SendbirdSigningKeysFile string `env:"SENDBIRD_SIGNING_KEYS_FILE"`

	RememberSent time.Duration `env:"REMEMBER_SENT" envDefault:"0"` // 0: off

	LogLevel  string `env:"LOG_LEVEL" envDefault:"info"`
	LogFormat string `env:"LOG_FORMAT"` // default json, console on a terminal

	set           map[string]string // the variables that were given, values as they may be shown
	ops           *secretSource
	passcode      *secretSource
	notifications *secretSource
	chat          *secretSource
	desk          *secretSource
	sender        *secretSource
	signing       *secretSource
}

// configError is a wrong or missing variable. Its one line names the variable and
// what to do, and the value where that is no secret.
type configError struct {
	variable string // with the prefix
	value    string // empty: not shown
	problem  string
}

func (e *configError) Error() string {
	if e.value == "" {
		return e.variable + ": " + e.problem
	}
	return fmt.Sprintf("%s=%q: %s", e.variable, shorten(e.value), e.problem)
}

// printable keeps a stranger's text on its line and harmless to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// maxShownBytes keeps a message on a screen when a whole file was pasted.
const maxShownBytes = 256

func shorten(s string) string {
	if len(s) <= maxShownBytes {
		return s
	}
	return s[:maxShownBytes] + "…"
}

// LoadConfig reads the environment as os.Environ gives it, and the files that hold
// secrets. A variable set to the empty string counts as not set; an unknown one is
// an error, since a slip in a name would otherwise pass in silence.
func LoadConfig(environ []string, terminal bool) (*Config, error) {
	set, err := collect(environ)
	if err != nil {
		return nil, err
	}
	c, err := env.ParseAsWithOptions[Config](env.Options{Prefix: envPrefix, Environment: set})
	if err != nil {
		return nil, parseError(set, err)
	}
	c.set = map[string]string{}
	for name, value := range set {
		c.set[name] = shown(name, value)
	}
	c.complete(terminal)
	if err := c.openSecrets(); err != nil {
		return nil, err
	}
	return &c, nil
}

// collect picks birdtap's variables that have a value.
func collect(environ []string) (map[string]string, error) {
	set := map[string]string{}
	for name, value := range env.ToMap(environ) {
		if strings.HasPrefix(name, envPrefix) {
			set[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if _, ok := variables[name]; !ok {
			return nil, unknownVariable(name)
		}
		if set[name] == "" {
			delete(set, name)
			continue
		}
		if !isSecret(name) && !isText(set[name]) {
			return nil, &configError{
				variable: name, value: shown(name, set[name]),
				problem: "must be text of one line, without control characters",
			}
		}
	}
	return set, nil
}

func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// variables are the fields of Config, each by the full name of its variable.
var variables = func() map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		if tag, ok := field.Tag.Lookup("env"); ok {
			fields[envPrefix+tag] = field
		}
	}
	return fields
}()

// variableNames are the names of all variables, sorted.
var variableNames = slices.Sorted(maps.Keys(variables))

func isSecret(name string) bool { return variables[name].Type == reflect.TypeFor[Secret]() }

// shown is a value as it may be printed.
func shown(name, value string) string {
	switch {
	case isSecret(name):
		return redacted
	case variables[name].Type == reflect.TypeFor[Address]():
		return Address(value).String()
	default:
		return value
	}
}

func unknownVariable(name string) error {
	name = shorten(name) // a distance to a name without end would take as long
	nearest := slices.MinFunc(variableNames, func(a, b string) int {
		return cmp.Compare(editDistance(name, a), editDistance(name, b))
	})
	problem := "is not a variable of birdtap; did you mean " + nearest + "?"
	if strings.Contains(name, "_SERVICE_") || strings.HasPrefix(name, envPrefix+"PORT") {
		problem += " (if Kubernetes set it for a service of that name: enableServiceLinks: false in the pod)"
	}
	return &configError{variable: printable(name), problem: problem}
}

// editDistance is the number of characters to insert, delete or replace to turn a
// into b (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// parseError turns what the parser says about a field into words about a variable.
func parseError(set map[string]string, err error) error {
	var all env.AggregateError
	var parse env.ParseError
	if !errors.As(err, &all) || len(all.Errors) == 0 || !errors.As(all.Errors[0], &parse) {
		return fmt.Errorf("read configuration: %w", err)
	}
	problem := parse.Err.Error()
	switch parse.Type {
	case reflect.TypeFor[int]():
		problem = "must be a whole number"
	case reflect.TypeFor[time.Duration]():
		problem = "must be a duration with its unit, such as 250ms, 30s, 2m or 24h"
	}
	field, _ := reflect.TypeFor[Config]().FieldByName(parse.Name)
	name := envPrefix + field.Tag.Get("env")
	return &configError{variable: name, value: shown(name, set[name]), problem: problem}
}

// complete fills in the defaults that depend on other variables.
func (c *Config) complete(terminal bool) {
	if !c.given("REPLICAS") {
		c.Replicas = 3
		if c.embedded() {
			c.Replicas = 1
		}
	}
	if !c.given("CLEVERTAP_URL") {
		c.CleverTapURL = clevertap.DefaultURL
		if u, err := clevertap.URLForRegion(c.CleverTapRegion); err == nil {
			c.CleverTapURL = Address(u)
		}
	}
	for _, of := range c.sendbirdURLs() {
		if u, err := of.byID(c.SendbirdAppID); err == nil && !c.given(of.name) {
			*of.url = Address(u)
		}
	}
	if c.LogFormat == "" {
		c.LogFormat = "json"
		if terminal {
			c.LogFormat = "console"
		}
	}
	c.UploadPaths = splitList(c.UploadPaths...)
	c.SendbirdUploadHosts = splitList(c.SendbirdUploadHosts...)
}

// sendbirdURL is the variable of one of Sendbird's three hosts.
type sendbirdURL struct {
	name  string // without the prefix
	url   *Address
	byID  func(appID string) (string, error)
	shape string // of an application's own
}

func (c *Config) sendbirdURLs() []sendbirdURL {
	return []sendbirdURL{
		{"SENDBIRD_NOTIFICATIONS_URL", &c.SendbirdNotificationsURL, sendbird.NotificationsURL, "https://api-YOUR-APP-ID.notifications.sendbird.com"},
		{"SENDBIRD_CHAT_URL", &c.SendbirdChatURL, sendbird.ChatURL, "https://api-YOUR-APP-ID.sendbird.com"},
		{"SENDBIRD_DESK_URL", &c.SendbirdDeskURL, sendbird.DeskURL, "https://desk-api-YOUR-APP-ID.sendbird.com"},
	}
}

// splitList returns the entries of comma lists, without blanks and empty ones.
func splitList(lists ...string) []string {
	var entries []string
	for _, list := range lists {
		for entry := range strings.SplitSeq(list, ",") {
			if entry = strings.TrimSpace(entry); entry != "" {
				entries = append(entries, entry)
			}
		}
	}
	return entries
}

func (c *Config) openSecrets() error {
	for _, s := range []struct {
		source **secretSource
		name   string
		value  Secret
		file   string
	}{
		{&c.ops, "OPS_TOKEN", c.OpsToken, c.OpsTokenFile},
		{&c.passcode, "CLEVERTAP_PASSCODE", c.CleverTapPasscode, c.CleverTapPasscodeFile},
		{&c.notifications, "SENDBIRD_NOTIFICATIONS_TOKEN", c.SendbirdNotificationsToken, c.SendbirdNotificationsTokenFile},
		{&c.chat, "SENDBIRD_API_TOKEN", c.SendbirdAPIToken, c.SendbirdAPITokenFile},
		{&c.desk, "SENDBIRD_DESK_TOKEN", c.SendbirdDeskToken, c.SendbirdDeskTokenFile},
		{&c.sender, "SENDER_TOKENS", c.SenderTokens, c.SenderTokensFile},
		{&c.signing, "SENDBIRD_SIGNING_KEYS", c.SendbirdSigningKeys, c.SendbirdSigningKeysFile},
	} {
		source, err := newSecretSource(envPrefix+s.name, s.value, s.file)
		if err != nil {
			return err
		}
		*s.source = source
	}
	return nil
}

// LogTo tells where to say that the file of a secret has become unreadable.
func (c *Config) LogTo(log *zap.Logger) {
	for _, s := range []*secretSource{c.ops, c.passcode, c.notifications, c.chat, c.desk, c.sender, c.signing} {
		s.log = log
	}
}

// given tells whether the variable, named without the prefix, was set.
func (c *Config) given(name string) bool {
	_, ok := c.set[envPrefix+name]
	return ok
}

// embedded tells whether the queue is in this process.
func (c *Config) embedded() bool { return c.NATSURL == "" }

// senderTokens returns what callers of the sender's doors may present at this moment.
func (c *Config) senderTokens() []string { return splitList(c.sender.Get()) }

// SigningKeys returns the keys that hold at this moment.
func (c *Config) SigningKeys() []string { return splitList(c.signing.Get()) }

// Print writes the effective configuration as sorted NAME=value lines, secrets
// redacted. The lines are an environment file, but for the secrets.
func (c *Config) Print(w io.Writer) error {
	for _, name := range variableNames {
		value := reflect.ValueOf(c).Elem().FieldByIndex(variables[name].Index).Interface()
		if _, err := fmt.Fprintf(w, "%s=%s\n", name, c.show(name, value)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) show(name string, value any) string {
	switch v := value.(type) {
	case Secret:
		if c.given(strings.TrimPrefix(name, envPrefix) + "_FILE") {
			return redacted
		}
		return v.String()
	case []string:
		return strings.Join(v, ",")
	case time.Duration:
		return durationText(v)
	default:
		return fmt.Sprint(v)
	}
}

// durationText is d without the zeros that Duration.String puts behind: 24h, not 24h0m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
