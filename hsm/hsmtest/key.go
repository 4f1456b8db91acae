package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

func signer(t *testing.T, m hsm.Module, key hsm.Blob) hsm.Signer {
	t.Helper()
	s, err := m.Signer(t.Context(), key)
	if err != nil {
		t.Fatalf("signer: %v", err)
	}
	return s
}

func publicKey(t *testing.T, m hsm.Module, key hsm.Blob) *ecdsa.PublicKey {
	t.Helper()
	s := signer(t, m, key)
	defer s.Close()
	pub, ok := s.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		t.Fatalf("a public key of type %T", s.Public())
	}
	return pub
}

// sign makes a signature and says whether it verifies.
func sign(s hsm.Signer, message string) error {
	digest := sha256.Sum256([]byte(message))
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(s.Public().(*ecdsa.PublicKey), digest[:], sig) {
		return errors.New("the signature does not verify")
	}
	return nil
}

func checkSigner(t *testing.T, m hsm.Module) {
	a, b := newKey(t, m), newKey(t, m)
	if publicKey(t, m, a).Equal(publicKey(t, m, b)) {
		t.Error("two new keys are the same")
	}
	s := signer(t, m, a)
	for range 3 {
		if err := sign(s, "message"); err != nil {
			t.Error(err)
		}
	}
	long := sha512.Sum384([]byte("message"))
	if _, err := s.Sign(rand.Reader, long[:], crypto.SHA384); err == nil {
		t.Error("a SHA-384 digest was signed")
	}
	if _, err := s.Sign(rand.Reader, long[:31], crypto.SHA256); err == nil {
		t.Error("a short digest was signed")
	}
	if _, err := s.Sign(rand.Reader, long[:32], crypto.Hash(0)); err == nil {
		t.Error("a digest without a hash was signed")
	}
	if _, err := s.Sign(rand.Reader, long[:32], nil); err == nil {
		t.Error("a digest without options was signed")
	}
	other := signer(t, m, a) // the same key twice
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := sign(s, "message"); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("closed signer: %v", err)
	}
	if err := sign(other, "message"); err != nil {
		t.Errorf("the other signer of that key: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func checkRequest(t *testing.T, m hsm.Module) {
	s := signer(t, m, newKey(t, m))
	defer s.Close()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "nav-001"}}, s)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
}

// authority is a CA for one test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{key, cert}
}

func (a authority) issue(t *testing.T, name string, s hsm.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, s.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s}
}

// checkTLS runs a mutual handshake with both keys in the module.
func checkTLS(t *testing.T, m hsm.Module) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	here, there := signer(t, m, newKey(t, m)), signer(t, m, newKey(t, m))
	defer here.Close()
	defer there.Close()
	a, b := net.Pipe()
	client := tls.Client(a, &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "there",
		Certificates: []tls.Certificate{ca.issue(t, "here", here)},
	})
	server := tls.Server(b, &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{ca.issue(t, "there", there)},
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer server.Close()
		if _, err := io.Copy(server, server); err != nil {
			t.Errorf("server: %v", err)
		}
		if peers := server.ConnectionState().PeerCertificates; len(peers) != 1 || peers[0].Subject.CommonName != "here" {
			t.Error("the server does not know the client")
		}
	})
	client.SetDeadline(time.Now().Add(20 * time.Second))
	server.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatalf("client: %v", err)
	}
	reply := make([]byte, 4)
	if _, err := io.ReadFull(client, reply); err != nil || string(reply) != "ping" {
		t.Errorf("client: %q, %v", reply, err)
	}
	client.Close()
}

func checkMAC(t *testing.T, m hsm.Module) {
	key := hsm.RandomSecret(hsm.MACKeySize)
	b := importMAC(t, m, key.Bytes())
	if bytes.Contains(b, key.Bytes()) {
		t.Error("the blob shows its key")
	}
	for _, n := range []int{0, 1, 64, hsm.MaxMACMessage - 1, hsm.MaxMACMessage} {
		message := hsm.RandomSecret(n).Bytes()
		got, err := m.MAC(t.Context(), b, message)
		if err != nil {
			t.Errorf("%d bytes: %v", n, err)
			continue
		}
		h := hmac.New(sha256.New, key.Bytes())
		h.Write(message)
		if !got.Equal(hsm.NewSecret(h.Sum(nil))) {
			t.Errorf("%d bytes: not what crypto/hmac makes", n)
		}
	}
	if _, err := m.MAC(t.Context(), b, make([]byte, hsm.MaxMACMessage+1)); !errors.Is(err, hsm.ErrTooLong) {
		t.Errorf("%d bytes: %v", hsm.MaxMACMessage+1, err)
	}
	for _, n := range []int{0, 1, hsm.MACKeySize - 1, hsm.MACKeySize + 1, 64} {
		if _, err := m.ImportMAC(t.Context(), hsm.RandomSecret(n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
	}
	if _, err := m.ImportMAC(t.Context(), nil); err == nil {
		t.Error("no key was taken as a key")
	}
}
