package gate

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// A Reason is why somebody was not let in, or let go on. The list only grows:
// people's scripts and terminals branch on it.
type Reason string

// Admitted is no reason at all.
const Admitted Reason = ""

// Before a terminal has proved anything: it sees a TLS alert at most.
const (
	Handshake     Reason = "handshake"      // not TLS 1.3, garbage, or too slow
	NotReady      Reason = "not-ready"      // the gate is not provisioned, or has no certificate of its own yet
	NoCertificate Reason = "no-certificate" // none was sent
	Crowded       Reason = "crowded"        // too many connections that have proved nothing yet
)

// The certificate does not prove a credential of this service.
const (
	UnknownIssuer Reason = "unknown-issuer" // not under this deployment's root
	NotYetValid   Reason = "not-yet-valid"
	Expired       Reason = "expired"
	Revoked       Reason = "revoked"
	NotForService Reason = "not-for-service" // another kind of certificate, deployment or service
)

// The gate cannot let anybody in, or no more.
const (
	NoList    Reason = "no-list"    // no list of revoked certificates for the issuer
	StaleList Reason = "stale-list" // nobody confirmed the list for crl_max_age
	Busy      Reason = "busy"       // too many connections, in all or with one credential
)

// The request.
const (
	Method          Reason = "method"           // CONNECT or TRACE
	Stalled         Reason = "stalled"          // the request's body stood still
	UpstreamDown    Reason = "upstream"         // the service is not reachable, or answers nonsense
	UpstreamTimeout Reason = "upstream-timeout" // the service does not answer
)

// advice is what a terminal is told: a status and what to do. [GATE-6]
var advice = map[Reason]struct {
	status int
	detail string
}{
	NotYetValid:     {http.StatusForbidden, "The credential is not valid yet. Wait, or set the terminal's clock."},
	Expired:         {http.StatusForbidden, "The credential has expired. It must be issued anew."},
	Revoked:         {http.StatusForbidden, "The credential is revoked. The administrator of the management server can say why."},
	NotReady:        {http.StatusServiceUnavailable, "The gate is not ready. Try again later."},
	NoList:          {http.StatusServiceUnavailable, "The gate has no list of revoked credentials for this issuer and admits nobody without. Try again later."},
	StaleList:       {http.StatusServiceUnavailable, "The gate's list of revoked credentials is too old to admit anybody. Try again later."},
	Method:          {http.StatusNotImplemented, "The gate does not pass on this method."},
	Stalled:         {http.StatusRequestTimeout, "The body of the request stood still for too long."},
	UpstreamDown:    {http.StatusBadGateway, "The service behind the gate cannot be reached. Try again later."},
	UpstreamTimeout: {http.StatusGatewayTimeout, "The service behind the gate did not answer in time. Try again later."},
}

// problem is the answer in the form of RFC 9457. Its type is about:blank, so
// its title is the status; what to branch on is the reason.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Reason Reason `json:"reason"`
}

// retryAfter is what a refusal that will pass suggests, in seconds.
const retryAfter = 30

// refuse answers a request that is not passed on. The connection of one that
// may pass no request at all ends with it.
func refuse(w http.ResponseWriter, reason Reason, final bool) {
	a, ok := advice[reason]
	if !ok {
		a.status, a.detail = http.StatusForbidden, "The credential is refused."
	}
	body, err := json.Marshal(problem{Type: "about:blank", Title: http.StatusText(a.status), Status: a.status, Detail: a.detail, Reason: reason})
	if err != nil {
		panic(err) // strings and a number
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	if a.status == http.StatusServiceUnavailable || a.status == http.StatusBadGateway {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	if final {
		h.Set("Connection", "close")
	}
	w.WriteHeader(a.status)
	w.Write(body)
}
