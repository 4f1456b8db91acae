package gate

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The gate's own certificate is issued by an administrator; status says with
// which verb, before and after it has run out.
func TestOwnCertificateRunsOut(t *testing.T) {
	h := newHouse(t)
	c, err := h.source.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	end := h.gate.Status().Certificate.Expires
	if len(c.Certificate) == 0 || end.IsZero() {
		t.Fatal("no certificate")
	}
	for left, open := range map[time.Duration]bool{time.Hour: true, -time.Hour: false} {
		s := Door{Open: true, Service: "maps"}
		h.gate.certificateStatus(&s, end.Add(-left))
		if s.Open != open || len(s.Problems) != 1 || s.Problems[0].Next != "have it issued anew: kagimori-server credential issue GATE --service maps" {
			t.Errorf("%v left: %+v", left, s)
		}
	}
}

// What a refused terminal is told is something that can be done.
func TestExpiredIsToldWhatHelps(t *testing.T) {
	if r := advice[Expired]; r.status != http.StatusForbidden || !strings.Contains(r.detail, "issued anew") {
		t.Errorf("%+v", r)
	}
}
