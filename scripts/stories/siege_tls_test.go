package stories

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

// Strangers at a shown code: foreign TLS, wrong words, words that were right in
// another place, a retired security code. Each gets the answer that it should,
// and none costs the code an attempt.
//
// req: C3
func TestStrangersAtTheDoor(t *testing.T) {
	s := newSiege(t)
	s.under("foreign TLS", s.foreignTLS)
	s.under("OpenSSL", s.openSSL)
	s.under("wrong words", s.wrongWords)
	s.under("in the middle", s.inTheMiddle)
}

// Nobody gets past TLS with less than the door asks for.
func (s *siege) foreignTLS(t *testing.T) {
	for name, change := range map[string]func(*tls.Config){
		"X25519 only":    func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} },
		"P-256 only":     func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} },
		"classical only": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384} },
		"TLS 1.2": func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.CurvePreferences = tls.VersionTLS12, tls.VersionTLS12, nil
		},
		"no protocol":       func(c *tls.Config) { c.NextProtos = nil },
		"HTTP":              func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} },
		"mode direct":       func(c *tls.Config) { c.NextProtos = []string{transport.KeycopyDirect.ALPN()} },
		"mode kek":          func(c *tls.Config) { c.NextProtos = []string{transport.KeycopyKEK.ALPN()} },
		"modes of old only": func(c *tls.Config) { c.NextProtos = []string{"keycopy/0-pake", "keycopy/1"} },
	} {
		config := speaks()
		change(config)
		c, err := s.knock(t.Context(), s.stranger(), config)
		if err == nil { // in TLS 1.3 a client hears of it with its first read
			c.SetReadDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The same by another implementation.
func (s *siege) openSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing: run scripts/setup.sh")
	}
	for name, args := range map[string][]string{
		"X25519": {"-tls1_3", "-groups", "X25519", "-alpn", transport.KeycopyPAKE.ALPN()},
		"P-256":  {"-tls1_3", "-groups", "P-256", "-alpn", transport.KeycopyPAKE.ALPN()},
		"FFDHE":  {"-tls1_3", "-groups", "ffdhe2048", "-alpn", transport.KeycopyPAKE.ALPN()},
		"1.2":    {"-tls1_2", "-alpn", transport.KeycopyPAKE.ALPN()},
		"HTTP":   {"-tls1_3", "-alpn", "http/1.1"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		bind := net.JoinHostPort(s.stranger().LocalAddr.(*net.TCPAddr).IP.String(), "0")
		cmd := exec.CommandContext(ctx, "openssl", append([]string{"s_client", "-connect", s.old.copy, "-bind", bind}, args...)...)
		cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), "alert") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// hello is a HELLO that is right in all that needs no secret.
func (s *siege) hello() *transport.KeycopyHello {
	share := transport.KeycopyPoint{0xe2, 0xf2, 0xae, 0x0a, 0x6a, 0xbc, 0x4e, 0x71, 0xa8, 0x84, 0xa9, 0x61, 0xc5, 0x00, 0x51, 0x5f, // the generator, RFC 9496
		0x58, 0xe3, 0x0b, 0x6a, 0xa5, 0x82, 0xdd, 0x8d, 0xb6, 0xa6, 0x59, 0x45, 0xe0, 0x8d, 0x2d, 0x76}
	return &transport.KeycopyHello{KeycopyHelloBody: transport.KeycopyHelloBody{
		Version: transport.KeycopyVersion, Mode: transport.KeycopyPAKE, Suite: transport.KeycopyCPace21, CodeID: transport.KeycopyCodeID{Group: "default", Epoch: 1},
		Target: transport.DeviceID{1}, Nonce: [32]byte{2}, Want: transport.TransferCopy, Share: &share,
	}}
}

// What somebody says who has no security code, and what he hears.
func (s *siege) wrongWords(t *testing.T) {
	with := func(change func(*transport.KeycopyHello)) []byte {
		m := s.hello()
		change(m)
		return message(t, m)
	}
	for name, tt := range map[string]struct {
		says  []byte
		hears transport.KeycopyFault
	}{
		"no MAC":          {with(func(*transport.KeycopyHello) {}), transport.KeycopyAuthFailed},
		"another version": {with(func(m *transport.KeycopyHello) { m.Version = 2 }), transport.KeycopyVersionRefused},
		"another suite":   {with(func(m *transport.KeycopyHello) { m.Suite = 2 }), transport.KeycopyModeRefused},
		"direct under pake": {with(func(m *transport.KeycopyHello) {
			m.Mode, m.Share, m.Code = transport.KeycopyDirect, nil, make([]byte, 48)
		}), transport.KeycopyModeRefused},
		"kek under pake":      {with(func(m *transport.KeycopyHello) { m.Mode, m.Share, m.Code = transport.KeycopyKEK, nil, make([]byte, 48) }), transport.KeycopyModeRefused},
		"another group":       {with(func(m *transport.KeycopyHello) { m.CodeID.Group = "ferries" }), transport.KeycopyCodeUnknown},
		"an epoch to come":    {with(func(m *transport.KeycopyHello) { m.CodeID.Epoch = 2 }), transport.KeycopyCodeUnknown},
		"an epoch before all": {with(func(m *transport.KeycopyHello) { m.CodeID.Epoch = 0 }), transport.KeycopyCodeUnknown},
		"another transfer":    {with(func(m *transport.KeycopyHello) { m.Want = "take" }), transport.KeycopyProtocol},
		"no share":            {with(func(m *transport.KeycopyHello) { m.Share = nil }), transport.KeycopyProtocol},
		"RESUME":              {message(t, &transport.KeycopyResume{KeycopyResumeBody: transport.KeycopyResumeBody{Txn: transport.ID{1}, Phase: transport.KeycopyStaged}}), transport.KeycopyTxnUnknown},
		"RESUME, an old end":  {message(t, &transport.KeycopyResume{KeycopyResumeBody: transport.KeycopyResumeBody{Txn: transport.ID{1}, Phase: transport.KeycopyDone}}), transport.KeycopyProtocol},
		"PROOF first":         {message(t, &transport.KeycopyProof{}), transport.KeycopyProtocol},
		"GRANT first":         {message(t, &transport.KeycopyGrant{Manifest: []byte{0xa0}}), transport.KeycopyProtocol},
		"RECEIPT first":       {message(t, &transport.KeycopyReceipt{}), transport.KeycopyProtocol},
		"the Source's words":  {message(t, &transport.KeycopyHelloAck{}), transport.KeycopyProtocol},
		"no such frame":       {frame(0x55, nil), transport.KeycopyProtocol},
		"garbage":             {frame(transport.KeycopyTypeHello, []byte{0xff, 0xff}), transport.KeycopyProtocol},
		"nothing in it":       {frame(transport.KeycopyTypeHello, nil), transport.KeycopyProtocol},
		"4 GiB":               {[]byte{0xff, 0xff, 0xff, 0xff, byte(transport.KeycopyTypeHello)}, transport.KeycopyProtocol},
		"4 KiB and a byte":    {frame(transport.KeycopyTypeHello, make([]byte, transport.MaxKeycopyHandshake+1))[:5], transport.KeycopyProtocol},
		"HTTP":                {[]byte("GET / HTTP/1.1\r\n\r\n")[:5], transport.KeycopyProtocol},
	} {
		c, err := s.knock(t.Context(), s.stranger(), speaks())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := c.Write(tt.says); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := fault(c); got != tt.hears || err != nil {
			t.Errorf("%s: the answer is %d (%v), want %d", name, got, err, tt.hears)
		}
		c.Close()
	}
}

// Somebody stands between the two terminals, speaks TLS with both, and passes
// every word on, or sends it back. What is right in one connection is wrong in
// the other.
func (s *siege) inTheMiddle(t *testing.T) {
	for name, pass := range map[string]func(out, in net.Conn) error{
		"passes on": func(out, in net.Conn) error {
			f, err := read(in)
			if err != nil {
				return err
			}
			if _, err := out.Write(frame(f.Type, f.Body)); err != nil {
				return err
			}
			f, err = read(out)
			if err != nil {
				return err
			}
			_, err = in.Write(frame(f.Type, f.Body))
			return err
		},
		"sends back": func(_, in net.Conn) error {
			f, err := read(in)
			if err != nil {
				return err
			}
			_, err = in.Write(frame(f.Type, f.Body))
			return err
		},
		"answers itself": func(_, in net.Conn) error {
			f, err := read(in)
			if err != nil {
				return err
			}
			var m transport.KeycopyHello
			if err := transport.DecodeKeycopy(f, &m); err != nil {
				return err
			}
			_, err = in.Write(message(t, &transport.KeycopyHelloAck{KeycopyHelloAckBody: transport.KeycopyHelloAckBody{Nonce: m.Nonce, Share: *m.Share}, Admit: m.Admit}))
			return err
		},
	} {
		middle := s.middleman(t, pass)
		r := s.fresh.ask(s.offer.code+"\n", "kagimori", "keycopy", "fetch", middle)
		if r.code == 0 || !strings.Contains(r.err, "next:") {
			t.Errorf("%s: exit %d\n%s%s", name, r.code, r.out, r.err)
		}
		t.Logf("%s: %s", name, lastLine(r.err))
		<-time.After(tcp.StrangerPause) // he comes from one address
	}
}

// middleman makes TLS with whoever comes, and with the old terminal, and lets
// pass do what it likes with the two.
func (s *siege) middleman(t *testing.T, pass func(out, in net.Conn) error) (address string) {
	t.Helper()
	server := speaks()
	server.Certificates = []tls.Certificate{nameless(t)}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := s.knock(t.Context(), s.stranger(), speaks())
			if err == nil {
				_ = pass(out, in)
				out.Close()
			}
			in.Close()
		}
	}()
	return l.Addr().String()
}

// A box that was stolen before the security code was replaced, with the code of
// then: it is turned away, whether it says so or lies about it. Its HELLO is made
// after docs/keycopy.md, by none of our code.
//
// req: C3
func TestRetiredSecurityCodeAtTheDoor(t *testing.T) {
	s := newSiege(t)
	stolen := s.code(t, "spare-"+s.fresh.name)
	s.d.server.verb("", "kagimori-server", "group", "rotate", "default")
	s.d.bundle("again", "spare", "add")
	s.d.provision(s.fresh.machine, "kagimori", "again")
	s.d.server.verb("", "kagimori-server", "group", "retire", "default", "--epoch", "1", "--force")
	s.old.untilCodes(2)
	inForce := s.code(t, "again")
	s.under("a retired security code", func(t *testing.T) {
		if got, err := s.says(t, stolen, 1); got.Type != transport.KeycopyTypeError || got.Body[2] != byte(transport.KeycopyCodeUnknown) || err != nil {
			t.Errorf("the old code: %v, %v", got, err)
		}
		if got, err := s.says(t, stolen, 2); got.Type != transport.KeycopyTypeError || got.Body[2] != byte(transport.KeycopyAuthFailed) || err != nil {
			t.Errorf("the old code, said to be the new one: %v, %v", got, err)
		}
		if got, err := s.says(t, inForce, 2); got.Type != transport.KeycopyTypeHelloAck || err != nil {
			t.Errorf("the code in force: %v, %v", got, err)
		}
	})
}

// code is the security code of a bundle.
func (s *siege) code(t *testing.T, name string) transport.Sensitive {
	t.Helper()
	b := s.d.bundles[name]
	file, err := os.ReadFile(b.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := transport.OpenBundle(file, transport.Sensitive(b.Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return bundle.SecurityCode
}

// says sends a HELLO under a security code, and gives the answer.
func (s *siege) says(t *testing.T, code transport.Sensitive, epoch uint32) (transport.KeycopyFrame, error) {
	t.Helper()
	c, err := s.knock(t.Context(), s.stranger(), speaks())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	state := c.ConnectionState()
	e, err := state.ExportKeyingMaterial("EXPORTER-keycopy/1", nil, 64)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(key []byte, parts ...string) []byte {
		h := hmac.New(sha256.New, key)
		for _, p := range parts {
			h.Write([]byte(p))
		}
		return h.Sum(nil)
	}
	scs := mac(code, "keycopy/1 sc", "\x00", "pake", string(e[:32]))
	admit := mac(scs, "keycopy/1 admit", "\x01") // HKDF-Expand of one block (RFC 5869 §2.3)
	m := s.hello()
	m.CodeID.Epoch = epoch
	body, err := transport.Marshal(m.KeycopyHelloBody)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(body)
	m.Admit = transport.KeycopyTag(mac(admit, "t", string(h[:])))
	if _, err := c.Write(message(t, m)); err != nil {
		t.Fatal(err)
	}
	return read(c)
}

// nameless is a certificate that says nothing.
func nameless(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
