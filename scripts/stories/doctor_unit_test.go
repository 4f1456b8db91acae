package stories

import (
	"encoding/json"
	"strings"
	"testing"
)

// diagnose asks a program's doctor inside the container.
func (h *house) diagnose(program string) (g diagnosis) {
	h.t.Helper()
	r := h.run("", program, "doctor", "--json")
	if err := json.Unmarshal([]byte(r.out), &g); err != nil {
		h.t.Fatalf("%s doctor: exit %d, %v\n%s%s", program, r.code, err, r.out, r.err)
	}
	return g
}

// doctor: the units as shipped are not called weak; each thing that a drop-in
// loosens is.
func (h *house) doctor(t *testing.T) {
	h.t = t
	for _, program := range []string{"kagimori", "kagimori-gate"} {
		for _, f := range h.diagnose(program).Findings {
			if f.Class == "unit-weak" {
				t.Errorf("%s as shipped: %s", program, f.Text)
			}
		}
	}
	loosened := map[string]string{
		"CapabilityBoundingSet": "CapabilityBoundingSet=CAP_CHOWN", "UMask": "UMask=0022", "LimitCORE": "LimitCORE=infinity",
		"ProtectSystem": "ProtectSystem=no", "ProtectHome": "ProtectHome=no", "PrivateTmp": "PrivateTmp=no", "User": "User=root",
	}
	text := "[Service]\n"
	for _, line := range loosened {
		text += line + "\n"
	}
	h.sh("mkdir -p /etc/systemd/system/kagimori-gate.service.d\nprintf '" + strings.ReplaceAll(text, "\n", `\n`) + "' >/etc/systemd/system/kagimori-gate.service.d/zz-loose.conf\nsystemctl daemon-reload")
	h.started("kagimori-gate", "")
	var weak []string
	for _, f := range h.diagnose("kagimori-gate").Findings {
		if f.Class == "unit-weak" {
			weak = append(weak, f.Text)
		}
	}
	for directive := range loosened {
		if directive == "LimitCORE" {
			continue // the program sets that limit by itself, whatever the unit says
		}
		if !strings.Contains(strings.Join(weak, "\n"), directive) {
			t.Errorf("%s was loosened, and the doctor says %q", directive, weak)
		}
	}
	h.sh("rm /etc/systemd/system/kagimori-gate.service.d/zz-loose.conf\nchown -R kagimori-gate:kagimori-gate /var/lib/kagimori-gate\nsystemctl daemon-reload")
	h.started("kagimori-gate", "")
}
