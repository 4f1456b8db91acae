package keycopy

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/transport"
)

// fromModule takes a security code into a module of its own and gives back what
// the module lets out: MACs.
func fromModule(t *testing.T, code string) SecurityCode {
	t.Helper()
	m, err := file.Open(filepath.Join(t.TempDir(), "device.secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	blob, err := m.ImportMAC(t.Context(), hsm.NewSecret([]byte(code)))
	if err != nil {
		t.Fatal(err)
	}
	return SecurityCode{transport.KeycopyCodeID{Group: "default", Epoch: 2}, func(ctx context.Context, message []byte) (*hsm.Secret, error) {
		return m.MAC(ctx, blob, message)
	}}
}

// Each terminal keeps the security code in its own key storage; the two fit
// each other, and the transcript vectors' software HMAC.
// req: C1
func TestSecurityCodesInTwoModules(t *testing.T) {
	for name, target := range map[string]SecurityCode{"two modules": fromModule(t, fleetKey), "module and software": hmacCode([]byte(fleetKey), "default", 2)} {
		r := newRig(t, 2)
		r.sourceConfig.Codes = []SecurityCode{fromModule(t, fleetKey)}
		r.targetConfig.Code = target
		r.arm("12345678", "12345678")
		if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
			t.Fatal(name, sourceErr, targetErr)
		}
		r.wantInstalled(t, r.records)
	}
	r := newRig(t, 1)
	r.sourceConfig.Codes = []SecurityCode{fromModule(t, "another security code, 32 bytes.")}
	r.arm("12345678", "12345678")
	sourceErr, _ := r.copyOnce(t)
	wantFault(t, "another code", sourceErr, transport.KeycopyAuthFailed, false)
}
