package configs

import (
	"fmt"
	"slices"
	"time"
)

// Agent is agent.toml, of `kagimori run`.
type Agent struct {
	// StateDir holds the store and, with hsm kind "file", the device secret.
	StateDir string  `toml:"state_dir"`
	HSM      HSM     `toml:"hsm"`
	Control  Control `toml:"control"`
	Link     Link    `toml:"link"`
	Keycopy  Keycopy `toml:"keycopy"`
	Relays   []Relay `toml:"relay"`
	Log      Log     `toml:"log"`
}

// Keycopy is the key copy from terminal to terminal (D10).
type Keycopy struct {
	// Listen is where an offer waits for the other terminal, only while it stands.
	Listen string `toml:"listen"`
	// CodeTTL is how long an operator code lives.
	CodeTTL Duration `toml:"code_ttl"`
	// Codes says who makes operator codes: "generated", "typed" or "either".
	Codes string `toml:"codes"`
	// Announce says on the local networks where an offer waits, while it does.
	Announce bool `toml:"announce"`
	// Numbers are those written on this terminal, which no typed code may have in it.
	Numbers []string `toml:"numbers"`
	// Enabled lists the modes that this terminal takes part in, the default first;
	// none switches key copies off.
	Enabled []string `toml:"enabled"`
	// RequireIdentity wants identity certificates in mode "pake" too.
	RequireIdentity bool `toml:"require_identity"`
}

// maxCodeTTL is the longest that an operator code may live.
const maxCodeTTL = 300 * time.Second

// keycopyModes are the modes that Keycopy.Enabled may name.
func keycopyModes() []string { return []string{"pake", "kek", "direct"} }

// codePolicies are what Keycopy.Codes may say.
func codePolicies() []string { return []string{"generated", "typed", "either"} }

func (k Keycopy) check(report report) {
	if !slices.Contains(codePolicies(), k.Codes) {
		report("keycopy.codes", "%q is not known; known: %q", k.Codes, codePolicies())
	}
	checkListen("keycopy.listen", k.Listen, report)
	k.CodeTTL.check("keycopy.code_ttl", 10*time.Second, maxCodeTTL, report)
	for i, m := range k.Enabled {
		if slices.Contains(k.Enabled[:i], m) {
			report("keycopy.enabled", "mode %q is there twice", m)
		}
		if !slices.Contains(keycopyModes(), m) {
			report("keycopy.enabled", "mode %q is not known; known: %q", m, keycopyModes())
		}
	}
}

// Relay is a local port or socket whose traffic the agent authenticates and
// encrypts towards a gate (L15).
type Relay struct {
	// Service names the gate's service.
	Service string `toml:"service"`
	// Listen is HOST:PORT or unix:/path.
	Listen string `toml:"listen"`
	// Exposed allows a Listen that other machines can reach.
	Exposed bool `toml:"exposed"`
}

func (r Relay) check(key string, report report) {
	if !isName(r.Service) {
		report(key+".service", "%q is not a name of a service", r.Service)
	}
	if _, ok := UnixPath(r.Listen); ok {
		return
	}
	checkListen(key+".listen", r.Listen, report)
	if !isLoopback(r.Listen) && !r.Exposed {
		report(key+".listen", "%q can be reached from other machines: whoever connects uses this terminal's credential; listen on 127.0.0.1, [::1] or unix:/path, or set exposed = true", r.Listen)
	}
}

// DefaultAgent is what the embedded agent.toml says.
func DefaultAgent() Agent {
	return Agent{
		StateDir: "/var/lib/kagimori",
		HSM:      HSM{Kind: "file", Passphrase: "ask", BootRegisters: []int{}},
		Control:  Control{Socket: "/run/kagimori/control.sock", Mode: "0660", Operators: []string{}},
		Link:     defaultLink(),
		Keycopy:  Keycopy{Listen: "0.0.0.0:8885", CodeTTL: durationOf(maxCodeTTL), Codes: "generated", Numbers: []string{}, Enabled: []string{"pake"}},
		Log:      defaultLog(),
	}
}

func defaultLink() Link {
	return Link{Poll: durationOf(15 * time.Minute), MaxBackoff: durationOf(2 * time.Minute)}
}

func defaultLog() Log { return Log{Level: "info", Format: "text"} }

func (a *Agent) setDefaults()        { *a = DefaultAgent() }
func (a *Agent) defaultPath() string { return AgentPath }

func (a *Agent) check(report report) {
	checkStateDir(a.StateDir, report)
	a.HSM.check(report)
	a.Control.check(report)
	a.Link.check(report)
	a.Keycopy.check(report)
	a.Log.check(report)
	listens := map[string]bool{}
	for i, r := range a.Relays {
		key := fmt.Sprintf("relay[%d]", i)
		r.check(key, report)
		if listens[r.Listen] {
			report(key+".listen", "%q is another relay's already", r.Listen)
		}
		listens[r.Listen] = true
	}
}

func checkStateDir(dir string, report report) {
	if dir == "" {
		report("state_dir", "is empty")
	}
}
