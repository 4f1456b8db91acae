package gate

import (
	"net/http"
	"strings"
)

// What the gate tells the service about the terminal, and what no terminal may
// tell it. [GATE-5]

const (
	// headerCredential carries the credential's id, headerSubject its subject:
	// the place registered at the service.
	headerCredential = "Kagimori-Credential"
	headerSubject    = "Kagimori-Subject"
)

// clean deletes what only a gate may say: headers of ours, and those by which
// proxies vouch for things. (Trailers do not pass at all.)
func clean(h http.Header) {
	for name := range h {
		if reserved(name) {
			delete(h, name)
		}
	}
}

// reserved goes by the name as a CGI or WSGI service would see it: case is lost
// there, and every sign but a letter or digit becomes the same one. So
// "kagimori_credential" is as much ours as "Kagimori-Credential".
func reserved(name string) bool {
	switch n := fold(name); n {
	case "kagimori", "forwarded", "x-real-ip", "proxy":
		return true
	default:
		return strings.HasPrefix(n, "kagimori-") || strings.HasPrefix(n, "x-forwarded-")
	}
}

func fold(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
}

// tame takes out an Upgrade that is not to a websocket. A service that agreed
// to, say, h2c would have the terminal speak to it past the gate.
func tame(h http.Header) {
	if u := h.Values("Upgrade"); len(u) > 0 && (len(u) != 1 || !strings.EqualFold(u[0], "websocket")) {
		h.Del("Upgrade")
	}
	h.Del("HTTP2-Settings")
}
