package gate

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// rawService answers every request with the very bytes of its head and
// trailers, so that a test sees what a service sees, whatever its library.
func rawService(t *testing.T) string {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerRaw(c)
		}
	}()
	return "http://" + l.Addr().String()
}

func answerRaw(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	var seen bytes.Buffer
	chunked := false
	for { // the head
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		seen.WriteString(line)
		chunked = chunked || strings.EqualFold(strings.TrimSpace(line), "Transfer-Encoding: chunked")
		if line == "\r\n" {
			break
		}
	}
	if chunked {
		body := httputil.NewChunkedReader(r)
		io.Copy(io.Discard, body)
		for { // the trailers
			line, err := r.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
			seen.WriteString(line)
		}
	}
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", seen.Len(), seen.Bytes())
}

// What a terminal may try in order to be taken for another one.
//
// req: L5, L6
func TestNoTerminalSpeaksForTheGate(t *testing.T) {
	h := buildHouse(t, Config{Upstream: rawService(t)})
	h.push(1)
	cred := h.credential(t, "maps", "cr-1")
	const get, post = "GET / HTTP/1.1\r\nHost: g\r\n", "POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n"
	for name, request := range map[string]string{
		"plainly":                   get + "Kagimori-Credential: evil\r\nKagimori-Subject: evil\r\n\r\n",
		"in small letters":          get + "kagimori-credential: evil\r\n\r\n",
		"in odd letters":            get + "kAgImOrI-cReDeNtIaL: evil\r\n\r\n",
		"twice":                     get + "Kagimori-Credential: evil\r\nKagimori-Credential: evil2\r\n\r\n",
		"underscore":                get + "Kagimori_Credential: evil\r\n\r\n",
		"underscores, small":        get + "kagimori_subject: evil\r\n\r\n",
		"both signs":                get + "Kagimori-_Credential: evil\r\nKagimori_-Subject: evil\r\n\r\n",
		"dot":                       get + "Kagimori.Credential: evil\r\n\r\n",
		"other signs":               get + "Kagimori!Credential: evil\r\nKagimori~Subject: evil\r\nKagimori|Subject: evil\r\n\r\n",
		"another of ours":           get + "Kagimori-Anything: evil\r\nKagimori: evil\r\n\r\n",
		"folded line":               get + "X: a\r\n Kagimori-Credential: evil\r\n\r\n",
		"hop by hop":                get + "Connection: Kagimori-Credential, Kagimori-Subject\r\nKagimori-Credential: evil\r\n\r\n",
		"hop by hop, odd letters":   get + "Connection: close, kagimori-credential, KAGIMORI-SUBJECT\r\n\r\n",
		"hop by hop, many lines":    get + "Connection: Kagimori-Credential\r\nConnection: Kagimori-Subject\r\n\r\n",
		"with an upgrade":           get + "Connection: Upgrade, Kagimori-Credential\r\nUpgrade: websocket\r\nKagimori-Credential: evil\r\n\r\n",
		"forwarded":                 get + "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Client-Cert: evil\r\nx_forwarded_user: evil\r\nForwarded: for=evil\r\nX-Real-IP: evil\r\n\r\n",
		"forwarded, hop by hop":     get + "Connection: X-Forwarded-For, X-Forwarded-Proto\r\nX-Forwarded-Proto: evil\r\n\r\n",
		"httpoxy":                   get + "Proxy: evil\r\n\r\n",
		"announced trailer":         post + "Trailer: Kagimori-Credential, X-Sum\r\n\r\n1\r\na\r\n0\r\nKagimori-Credential: evil\r\nX-Sum: 1\r\n\r\n",
		"trailer, odd letters":      post + "Trailer: kagimori_subject\r\n\r\n1\r\na\r\n0\r\nkagimori_subject: evil\r\n\r\n",
		"trailer without notice":    post + "\r\n1\r\na\r\n0\r\nKagimori-Subject: evil\r\n\r\n",
		"absolute request target":   "GET http://elsewhere.test/path HTTP/1.1\r\nHost: g\r\nKagimori-Credential: evil\r\n\r\n",
		"old HTTP":                  "GET / HTTP/1.0\r\nKagimori-Credential: evil\r\n\r\n",
		"after a header with space": get + "Accept:\t evil-not \r\nKagimori-Credential:evil\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := h.dial(cred)
			io.WriteString(c, request)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%+v %v", resp, err)
			}
			data, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			checkTold(t, string(data))
		})
	}
}

// checkTold looks at what reached the service: the gate's word, once.
func checkTold(t *testing.T, head string) {
	t.Helper()
	seen := strings.ReplaceAll(head, "evil-not", "")
	if strings.Contains(seen, "X: a Kagimori") { // a folded line is a value, not a header
		seen = strings.ReplaceAll(seen, "X: a Kagimori-Credential: evil", "")
	}
	if strings.Contains(seen, "evil") || strings.Contains(seen, "192.0.2.7") {
		t.Errorf("the service is told:\n%s", seen)
	}
	lines := strings.Split(strings.ToLower(seen), "\r\n")
	for _, want := range []string{"kagimori-credential: cr-1", "kagimori-subject: place-cr-1", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: https"} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is missing:\n%s", want, seen)
		}
	}
	if n := strings.Count(strings.ToLower(seen), "kagimori"); n != 2 {
		t.Errorf("kagimori is said %d times:\n%s", n, seen)
	}
}

// Requests that can be read in two ways are not passed on, or in one way only.
func TestAmbiguousRequestsAreNotPassedOn(t *testing.T) {
	h := buildHouse(t, Config{Upstream: rawService(t)})
	h.push(1)
	cred := h.credential(t, "maps", "cr-1")
	for name, request := range map[string]string{
		"two lengths":            "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
		"odd length":             "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: +3\r\n\r\nabc",
		"unknown coding":         "POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"two codings":            "POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		"space before the colon": "GET / HTTP/1.1\r\nHost: g\r\nKagimori-Credential : evil\r\n\r\n",
		"space in a name":        "GET / HTTP/1.1\r\nHost: g\r\nKagimori Credential: evil\r\n\r\n",
		"null in a name":         "GET / HTTP/1.1\r\nHost: g\r\nKagimori\x00Credential: evil\r\n\r\n",
		"two hosts":              "GET / HTTP/1.1\r\nHost: g\r\nHost: h\r\n\r\n",
		"no host":                "GET / HTTP/1.1\r\n\r\n",
		"large head":             "GET / HTTP/1.1\r\nHost: g\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n",
	} {
		c := h.dial(cred)
		io.WriteString(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && resp.StatusCode < 400 {
			data, _ := io.ReadAll(resp.Body)
			t.Errorf("%s: passed on as %q", name, data)
		}
	}
	if s := h.gate.Status(); s.Passed != 0 {
		t.Errorf("%d were passed on", s.Passed)
	}
	// Both a length and a coding: RFC 9112 §6.3 has the coding count, and the
	// service must get only one of them.
	c := h.dial(cred)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := io.ReadAll(resp.Body)
	if head := strings.ToLower(string(data)); strings.Contains(head, "transfer-encoding") == strings.Contains(head, "content-length") || strings.Contains(head, "smuggled") {
		t.Errorf("the service is told:\n%s", data)
	}
}

// Whatever header a terminal sends: what the service would read as ours is
// exactly what the gate says.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		"Kagimori-Credential: evil", "kagimori_credential: evil\nConnection: Kagimori-Credential", "Kagimori.Subject: a\nKAGIMORI: b",
		"X-Forwarded-For: a\nForwarded: b\nx_real_ip: c", "Connection: close, Upgrade\nUpgrade: h2c", "Upgrade: websocket\nConnection: Upgrade", "Kagimori: x", "Te: trailers",
	} {
		f.Add(s)
	}
	up, err := newUpstream("http://127.0.0.1:1", nil)
	if err != nil {
		f.Fatal(err)
	}
	var out, trailer http.Header
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(p *httputil.ProxyRequest) { rewrite(p, up) },
		Transport:    roundTrip(func(r *http.Request) { out, trailer = r.Header.Clone(), r.Trailer }),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {},
	}
	who := identity{credential: "cr-1", subject: "place-1"}
	f.Fuzz(func(t *testing.T, head string) {
		mime, err := textproto.NewReader(bufio.NewReader(strings.NewReader(head + "\n\n"))).ReadMIMEHeader()
		if err != nil {
			return
		}
		r := (&http.Request{Method: "GET", URL: &url.URL{Path: "/"}, Header: http.Header(mime), RemoteAddr: "192.0.2.1:1", Trailer: http.Header(mime).Clone()}).
			WithContext(newSessionContext(t.Context(), &session{who: who}))
		out = nil
		clean(r.Header)
		tame(r.Header)
		proxy.ServeHTTP(nopWriter{}, r)
		if out == nil {
			return // not passed on
		}
		seen := map[string]string{}
		for name, values := range out {
			key := strings.Map(func(c rune) rune { // as a CGI service would have it
				if c >= 'a' && c <= 'z' {
					return c - 'a' + 'A'
				}
				if c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
					return c
				}
				return '_'
			}, name)
			if strings.HasPrefix(key, "KAGIMORI") && (key == "KAGIMORI" || key[len("KAGIMORI")] == '_') {
				seen[key] += strings.Join(values, ",")
			}
		}
		if len(seen) != 2 || seen["KAGIMORI_CREDENTIAL"] != "cr-1" || seen["KAGIMORI_SUBJECT"] != "place-1" {
			t.Fatalf("%q: the service is told %v", head, seen)
		}
		if len(trailer) > 0 {
			t.Fatalf("%q: trailers %v", head, trailer)
		}
		if u := out.Get("Upgrade"); u != "" && !strings.EqualFold(u, "websocket") || len(out.Values("Upgrade")) > 1 {
			t.Fatalf("%q: upgrade %q", head, out.Values("Upgrade"))
		}
	})
}

type roundTrip func(*http.Request)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	f(r)
	return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody, Header: http.Header{}}, nil
}

type nopWriter struct{}

func (nopWriter) Header() http.Header         { return http.Header{} }
func (nopWriter) Write(p []byte) (int, error) { return len(p), nil }
func (nopWriter) WriteHeader(int)             {}
