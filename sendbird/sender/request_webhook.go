package sender

import (
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

// webhookCall is the call that CleverTap's webhooks make:
//
//	{"targetId":1234,
//	 "key_values":{"template_key":"welcome","receiver":"SendbirdID","var.name":"Jay"},
//	 "profiles":[{"identity":"u1","profileData":{"SendbirdID":"sb-1"},"key_values":{"var.name":"Kim"}}, …]}
//
// profiles may be one object. CleverTap's own samples differ in letter case, so that of
// its names is ignored. What else it sends (email, push_token, event_properties …) is of
// no interest. A profile's own key_values win over the common ones, name by name:
//
//	template_key   required
//	event_name     that the receipts are told by
//	receiver       name of the field with the Sendbird user id, which is looked up in the
//	               profile, then in its profileData; default identity
//	tag, title, priority
//	push.<key>     a pair of notification_push_data
//	var.<name>     a template variable, see webhookValue
//
// These names are birdtap's, so letter case counts. Any other one is refused with an
// answer that names it: a typing slip would otherwise send a notification without what
// the marketer has filled in.
type webhookCall struct {
	target, keyValues, profiles jsontext.Value
	afterPush                   bool // a profile has a payload, as after a push
}

func parseWebhook(asks *grouping, body jsontext.Value) error {
	var call webhookCall
	if err := call.read(body); err != nil {
		return err
	}
	common := settings{message: Message{Mode: asks.mode}, receiver: defaultReceiver}
	if call.target != nil {
		target, err := targetID("targetId", call.target)
		if err != nil {
			return err
		}
		common.message.Target = target
	}
	common, err := common.with(call.keyValues)
	if err != nil {
		return err
	}
	p := profiles{asks: asks, common: common}
	if err := p.begin(); err != nil {
		return err
	}
	if err := call.each(p.add); err != nil {
		return err
	}
	switch {
	case p.wrong == nil || p.ownTemplate:
		return nil
	case call.afterPush:
		return mistakef("this is the call of a webhook after a push, which has no key_values: template_key is missing")
	default:
		return p.wrong
	}
}

func (c *webhookCall) read(body jsontext.Value) error {
	err := members(body, func(name string, v jsontext.Value) error {
		return setOnce(name, v, vendorName{"targetId", &c.target}, vendorName{"key_values", &c.keyValues}, vendorName{"profiles", &c.profiles})
	})
	if err != nil {
		return err
	}
	if !isObjectOrNone(c.keyValues) {
		return mistakef("key_values must be an object")
	}
	return nil
}

// each calls fn for every profile.
func (c *webhookCall) each(fn func(profile) error) error {
	one := func(v jsontext.Value) error {
		p, err := readProfile(v)
		if err != nil {
			return err
		}
		c.afterPush = c.afterPush || p.payload != nil
		return fn(p)
	}
	switch c.profiles.Kind() {
	case jsontext.KindBeginObject:
		return one(c.profiles)
	case jsontext.KindBeginArray:
		return elements(c.profiles, func(i int, v jsontext.Value) error {
			if v.Kind() != jsontext.KindBeginObject {
				return mistakef("profiles[%d] must be an object", i)
			}
			return one(v)
		})
	case jsontext.KindInvalid:
		return mistakef("profiles is missing")
	default:
		return mistakef("profiles must be an array or an object")
	}
}

// profile is one of CleverTap's.
type profile struct {
	all                                jsontext.Value
	identity, data, keyValues, payload jsontext.Value
}

func readProfile(v jsontext.Value) (profile, error) {
	p := profile{all: v}
	err := members(v, func(name string, v jsontext.Value) error {
		if name == "payload" {
			p.payload = v
		}
		return setOnce(name, v, vendorName{"identity", &p.identity}, vendorName{"profileData", &p.data}, vendorName{"key_values", &p.keyValues})
	})
	if err == nil && !isObjectOrNone(p.keyValues) {
		err = mistakef("key_values of a profile must be an object")
	}
	return p, err
}

func isObjectOrNone(v jsontext.Value) bool {
	return v == nil || v.Kind() == jsontext.KindBeginObject || v.Kind() == jsontext.KindNull
}

// profiles makes users of profiles.
type profiles struct {
	asks        *grouping
	common      settings
	wrong       *mistake // the common message has no template
	group       *group   // of users of the common message, nil if that has no template
	ownTemplate bool     // a profile had one
}

// begin judges the common settings. That they have no template may be made up for by
// the profiles; everything else is a mistake for all.
func (p *profiles) begin() (err error) {
	if problem := tooLargeProblem(p.common.size); problem != "" {
		return mistakef("key_values: %s", problem)
	}
	p.wrong = p.common.check()
	if p.common.message.Template == "" {
		complete := p.common
		complete.message.Template = "any"
		if wrong := complete.check(); wrong != nil {
			return wrong
		}
		return nil
	}
	if p.wrong != nil {
		return p.wrong
	}
	p.group, err = p.asks.group(p.common.message)
	return err
}

// add makes a user, or an unsendable one, of a profile.
func (p *profiles) add(who profile) error {
	s, group, wrong := p.common, p.group, p.wrong
	bytes := s.size
	if who.keyValues != nil {
		if err := p.asks.charge(s.size); err != nil { // it is copied, whatever comes of it
			return err
		}
		own, err := s.with(who.keyValues)
		if err != nil {
			return p.refuse(who, err.Error())
		}
		bytes = max(0, own.size-p.common.size)
		if s = own; s.changed {
			p.ownTemplate = p.ownTemplate || s.message.Template != ""
			if wrong = s.check(); wrong == nil {
				group, err = p.asks.group(s.message)
			}
			if err != nil {
				return err
			}
		}
	}
	if wrong != nil {
		return p.refuse(who, wrong.text)
	}
	id, problem := who.user(s.receiver)
	if problem != "" {
		return p.asks.unsendable(group, Unsendable{who.shown(), ReasonNoReceiver, problem})
	}
	if problem := s.problem(); problem != "" {
		return p.asks.unsendable(group, Unsendable{id, ReasonVariables, problem})
	}
	return p.asks.add(group, User{id, s.vars}, bytes)
}

// refuse lists somebody whose own message cannot be sent with the common one, or, where
// that is none either, with what is known of the campaign.
func (p *profiles) refuse(who profile, detail string) error {
	group := p.group
	if group == nil {
		var err error
		m := p.common.message
		if group, err = p.asks.group(Message{Mode: m.Mode, Event: m.Event, Target: m.Target}); err != nil {
			return err
		}
	}
	return p.asks.unsendable(group, Unsendable{who.shown(), ReasonInvalid, detail})
}

const defaultReceiver = "identity"

// user finds the Sendbird user id, or says why it cannot.
func (p *profile) user(receiver string) (id, problem string) {
	v, many := find(p.all, receiver)
	if many == 0 && p.data.Kind() == jsontext.KindBeginObject {
		v, many = find(p.data, receiver)
	}
	field := "field " + inQuotes(receiver)
	switch {
	case many == 0:
		return "", "no " + field
	case many > 1:
		return "", field + " is there twice, in different letter case"
	case v.Kind() == jsontext.KindString:
		id = unquote(v)
	case v.Kind() == jsontext.KindNumber && isInteger(v):
		id = string(v)
	default:
		return "", field + " is neither text nor an integer"
	}
	if problem := checkUser(id); problem != "" {
		return "", field + ": " + problem
	}
	return id, ""
}

// find looks a member up, ignoring letter case, and counts those that go by the name.
func find(object jsontext.Value, name string) (found jsontext.Value, many int) {
	_ = members(object, func(have string, v jsontext.Value) error { // valid, as all of the body
		if strings.EqualFold(have, name) {
			found = v
			many++
		}
		return nil
	})
	return found, many
}

// shown is who an unsendable one is, as far as CleverTap said.
func (p *profile) shown() string {
	id := ""
	switch p.identity.Kind() {
	case jsontext.KindString:
		id = unquote(p.identity)
	case jsontext.KindNumber:
		id = string(p.identity)
	default:
	}
	return shownUser(id)
}

// settings are what key_values come to.
type settings struct {
	message  Message
	changed  bool // the message, by the last with
	receiver string
	vars     sendbird.Variables
	bad      map[string]string // variables without a usable value, and why
	size     int               // of vars, as they are stored at most, and of what is bad
}

// with sets what stands in an object of key_values, if there is one. It changes
// nothing of s.
func (s settings) with(keyValues jsontext.Value) (settings, error) {
	if keyValues.Kind() != jsontext.KindBeginObject {
		return s, nil
	}
	s.changed = false
	s.message.Push, s.vars, s.bad = cloned(s.message.Push), cloned(s.vars), cloned(s.bad)
	if err := members(keyValues, s.set); err != nil {
		return s, err
	}
	s.size = variablesSize(s.vars)
	for name, why := range s.bad {
		s.size += len(name) + len(why)
	}
	return s, nil
}

func cloned[M ~map[string]V, V any](m M) M {
	if m == nil {
		return M{}
	}
	return maps.Clone(m)
}

func (s *settings) set(name string, v jsontext.Value) error {
	if variable, ok := strings.CutPrefix(name, "var."); ok {
		return s.setVariable(name, variable, v)
	}
	s.changed = true
	text, err := keyValueText(name, v)
	if key, ok := strings.CutPrefix(name, "push."); ok {
		s.message.Push[key] = text
		return err
	}
	switch name {
	case "template_key":
		s.message.Template = text
	case "event_name":
		s.message.Event = text
	case "receiver":
		s.receiver = text
		if text == "" {
			s.receiver = defaultReceiver // a field of the form that was left empty
		}
	case "tag":
		s.message.Tag = text
	case "title":
		s.message.Title = text
	case "priority":
		s.message.Priority = sendbird.Priority(text)
	default:
		return mistakef("key_values: unknown name %s; there are template_key, event_name, receiver, tag, title, priority, push.<key> and var.<name>", inQuotes(name))
	}
	return err
}

// keyValueText reads what a form's field holds: text, or a number or truth value, which
// are taken as they are written.
func keyValueText(name string, v jsontext.Value) (string, error) {
	text, ok := scalar(v)
	if !ok {
		return "", mistakef("key_values: %s must be text", inQuotes(name))
	}
	return text, nil
}

func (s *settings) setVariable(name, variable string, v jsontext.Value) error {
	if variable == "" || !isLine(variable) {
		return mistakef("key_values: %s: the name of a variable is text of one line, not empty", inQuotes(name))
	}
	value, problem := webhookValue(v)
	if problem == "" {
		problem = checkVariable(variable, value)
	}
	if problem != "" {
		delete(s.vars, variable)
		s.bad[variable] = problem
		return nil
	}
	delete(s.bad, variable)
	s.vars[variable] = value
	return nil
}

// check says what is wrong with the message.
func (s *settings) check() *mistake { return checkMessage(&s.message, keyValueName) }

// keyValueName is what Sendbird's field is called among key_values.
func keyValueName(field string) string {
	switch field {
	case "template.key":
		return "template_key"
	case "template.notification_push_data":
		return "push.<key>"
	default:
		return field
	}
}

// problem says why the variables cannot be sent, "" if they can; the first by name.
func (s *settings) problem() string {
	if len(s.bad) > 0 {
		name := slices.Min(slices.Collect(maps.Keys(s.bad)))
		return variableProblem(name, s.bad[name])
	}
	return tooLargeProblem(s.size)
}
