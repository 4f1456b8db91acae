package configs

import (
	"net/url"
	"strings"
	"time"
)

// Gate is gate.toml, of `kagimori-gate run`.
type Gate struct {
	// StateDir holds the store and, with hsm kind "file", the device secret.
	StateDir string   `toml:"state_dir"`
	HSM      HSM      `toml:"hsm"`
	Control  Control  `toml:"control"`
	Link     Link     `toml:"link"`
	Gate     GateGate `toml:"gate"`
	Log      Log      `toml:"log"`
}

// GateGate is the gate itself: where terminals come in and where they go.
type GateGate struct {
	// Listen is where terminals connect.
	Listen string `toml:"listen"`
	// Upstream is the protected service: http:// on loopback, unix:/path, or https://.
	Upstream string `toml:"upstream"`
	// UpstreamCA is a PEM file of the CAs of an https upstream; empty: the system's.
	UpstreamCA string `toml:"upstream_ca"`
	// CRLMaxAge is how long the last good revocation list serves.
	CRLMaxAge Duration `toml:"crl_max_age"`
	// CRLFetch is how often a new one is fetched.
	CRLFetch Duration `toml:"crl_fetch"`
}

func (g GateGate) check(report report) {
	checkListen("gate.listen", g.Listen, report)
	g.CRLMaxAge.check("gate.crl_max_age", time.Minute, 30*24*time.Hour, report)
	g.CRLFetch.check("gate.crl_fetch", 10*time.Second, 24*time.Hour, report)
	if g.CRLFetch.D() > g.CRLMaxAge.D() {
		report("gate.crl_fetch", "%v is longer than crl_max_age, %v", g.CRLFetch, g.CRLMaxAge)
	}
	g.checkUpstream(report)
	if g.UpstreamCA != "" && !strings.HasPrefix(g.Upstream, "https:") {
		report("gate.upstream_ca", "is for an https upstream only")
	}
}

func (g GateGate) checkUpstream(report report) {
	if _, ok := UnixPath(g.Upstream); ok {
		return
	}
	const key = "gate.upstream"
	u, err := url.Parse(g.Upstream)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		report(key, "%q is none of http://127.0.0.1:PORT, unix:/path, https://HOST", g.Upstream)
	case u.Scheme != "http" && u.Scheme != "https":
		report(key, "%q: scheme is neither http nor https", g.Upstream)
	case u.Path != "" && u.Path != "/":
		report(key, "%q has a path, which a terminal could leave with dots; give the service a host or port of its own", g.Upstream)
	case u.Scheme == "https":
	case !isLoopback(withPort(u.Host)):
		report(key, "%q: plain http only on loopback, since what the gate vouches for must not cross a network in clear; use https", g.Upstream)
	}
}

func withPort(host string) string {
	if strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']') {
		return host
	}
	return host + ":80"
}

// defaultGate is what the embedded gate.toml says.
func defaultGate() Gate {
	return Gate{
		StateDir: "/var/lib/kagimori-gate",
		HSM:      HSM{Kind: "file", Passphrase: "ask", BootRegisters: []int{}},
		Control:  Control{Socket: "/run/kagimori-gate/control.sock", Mode: "0660", Operators: []string{}},
		Link:     defaultLink(),
		Gate: GateGate{
			Listen: "0.0.0.0:8443", Upstream: "http://127.0.0.1:8080",
			CRLMaxAge: durationOf(24 * time.Hour), CRLFetch: durationOf(time.Hour),
		},
		Log: defaultLog(),
	}
}

func (g *Gate) setDefaults()        { *g = defaultGate() }
func (g *Gate) defaultPath() string { return GatePath }

func (g *Gate) check(report report) {
	checkStateDir(g.StateDir, report)
	g.HSM.check(report)
	g.Control.check(report)
	g.Link.check(report)
	g.Gate.check(report)
	g.Log.check(report)
}
