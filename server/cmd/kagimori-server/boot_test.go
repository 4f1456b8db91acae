package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

// Approvals are made with keys of openssl, and with no server.
func TestBootApprove(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	path := func(name string) string { return filepath.Join(w.dir, name) }
	openssl := func(args ...string) {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v %s: run scripts/setup.sh", args, err, out)
		}
	}
	openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path("vendor.pem"))
	openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", path("p384.pem"))
	openssl("ec", "-in", path("vendor.pem"), "-out", path("sec1.pem"))
	value := "7=" + strings.Repeat("ab", 32)
	for i, key := range []string{"vendor.pem", "sec1.pem"} {
		out := path(key + ".approval")
		args := []string{"boot", "approve", "--key", path(key), "--register", value, "--register", "14=" + strings.Repeat("01", 32)}
		if i == 0 {
			args = append(args, "-o", out, "--json")
		} else {
			args = append(args, "--out", out)
		}
		said := w.good(args...)
		var a approved
		if i == 0 && (json.Unmarshal([]byte(said), &a) != nil || a.File != out || len(a.Registers) != 2) {
			t.Errorf("%s", said)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := hsm.ParseApproval(data); err != nil || got.Values[7][0] != 0xab || len(got.Values) != 2 {
			t.Errorf("%+v, %v", got, err)
		}
		if i > 0 {
			w.bad(6, args...) // it is there already
		}
	}
	out := path("no.approval")
	w.bad(2, "boot", "approve", "--register", value, "-o", out)
	w.bad(2, "boot", "approve", "--key", path("vendor.pem"), "-o", out)
	w.bad(2, "boot", "approve", "--key", path("vendor.pem"), "--register", value)
	for _, bad := range [][]string{
		{"--key", path("p384.pem"), "--register", value},
		{"--key", path("none.pem"), "--register", value},
		{"--key", path("vendor.pem.approval"), "--register", value},
		{"--key", path("vendor.pem"), "--register", "7"},
		{"--key", path("vendor.pem"), "--register", "24=" + strings.Repeat("ab", 32)},
		{"--key", path("vendor.pem"), "--register", "7=" + strings.Repeat("00", 32)}, // nothing is measured
		{"--key", path("vendor.pem"), "--register", value, "--register", value},
	} {
		w.bad(7, append([]string{"boot", "approve", "-o", out}, bad...)...)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a file is left")
	}
}
