package store

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"go.uber.org/zap"
)

// account is one account of a server that knows its users by signed tokens.
type account struct{ keys nkeys.KeyPair }

// startTokenServer is such a server, with one account.
func startTokenServer(t *testing.T) (*server.Server, account) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	operator, err := nkeys.CreateOperator()
	fail(err)
	operatorID, err := operator.PublicKey()
	fail(err)
	keys, err := nkeys.CreateAccount()
	fail(err)
	accountID, err := keys.PublicKey()
	fail(err)
	token, err := jwt.NewAccountClaims(accountID).Encode(operator)
	fail(err)

	o := serverOptions(t)
	o.JetStream, o.NoSystemAccount = false, false
	o.TrustedKeys = []string{operatorID}
	resolver := &server.MemAccResolver{}
	fail(resolver.Store(accountID, token))
	o.AccountResolver = resolver
	return startServer(t, o), account{keys}
}

// writeCreds writes the credentials of a new user, and returns the user's public key.
func (a account) writeCreds(t *testing.T, file string) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	id, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.NewUserClaims(id).Encode(a.keys)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	return id
}

// Credentials that were exchanged on disk count at the next connection, without a
// restart; while the file is empty birdtap tries on.
func TestCredentialsAreReadAgainOnReconnect(t *testing.T) {
	ns, account := startTokenServer(t)
	file := filepath.Join(t.TempDir(), "birdtap.creds")
	first := account.writeCreds(t, file)
	s := &Store{opts: Options{NATSCredsFile: file, Prefix: defaultPrefix}, log: zap.NewNop(), denied: newDenials()}
	if err := s.dial(ns.ClientURL()); err != nil {
		t.Fatal(err)
	}
	defer s.nc.Close()
	connected := func(user string) bool {
		z, err := ns.Connz(&server.ConnzOptions{Username: true})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(z.Conns, func(c *server.ConnInfo) bool { return c.AuthorizedUser == user })
	}
	eventually(t, "connected as the first user", func() bool { return connected(first) })

	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "disconnected, for the file is empty", func() bool { return !connected(first) && !s.nc.IsConnected() })
	second := account.writeCreds(t, file)
	eventually(t, "connected as the second user", func() bool { return connected(second) && s.nc.IsConnected() })
	if connected(first) {
		t.Error("the first user is still connected")
	}
}
