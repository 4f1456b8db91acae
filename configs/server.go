package configs

import "time"

// Server is server.toml, of `kagimori-server run`.
type Server struct {
	// StateDir holds the database and, with hsm kind "file", the device secret.
	StateDir    string      `toml:"state_dir"`
	HSM         ServerHSM   `toml:"hsm"`
	Control     Control     `toml:"control"`
	MQTT        MQTT        `toml:"mqtt"`
	HTTP        HTTP        `toml:"http"`
	CA          CA          `toml:"ca"`
	Attestation Attestation `toml:"attestation"`
	Log         Log         `toml:"log"`
}

// Attestation is the proof of a TPM at enrollment.
type Attestation struct {
	// EKRoots is a PEM file of CA certificates of makers of TPMs; empty: none is
	// believed, and no terminal can be asked for proof.
	EKRoots string `toml:"ek_roots"`
}

// MQTT is the broker.
type MQTT struct {
	// Listen is where terminals and gates connect, TLS 1.3.
	Listen string `toml:"listen"`
}

// HTTP serves revocation lists and /healthz.
type HTTP struct {
	// Listen is where; plain http, nothing secret is served.
	Listen string `toml:"listen"`
}

// CA says how long what the issuing CAs sign is good.
type CA struct {
	// IdentityLifetime is of terminals' and gates' identity certificates.
	IdentityLifetime Duration `toml:"identity_lifetime"`
	// ServiceLifetime is of service certificates, the credentials.
	ServiceLifetime Duration `toml:"service_lifetime"`
	// ServerLifetime is of certificates of this server and of gates.
	ServerLifetime Duration `toml:"server_lifetime"`
	// CRLLifetime is from a revocation list's issue to its next update.
	CRLLifetime Duration `toml:"crl_lifetime"`
	// Backdate is how far notBefore lies in the past, for slow clocks.
	Backdate Duration `toml:"backdate"`
}

func (c CA) check(report report) {
	const decade = 10 * 365 * 24 * time.Hour
	c.IdentityLifetime.check("ca.identity_lifetime", time.Minute, decade, report)
	c.ServiceLifetime.check("ca.service_lifetime", time.Minute, decade, report)
	c.ServerLifetime.check("ca.server_lifetime", time.Minute, decade, report)
	c.CRLLifetime.check("ca.crl_lifetime", time.Minute, 90*24*time.Hour, report)
	c.Backdate.check("ca.backdate", 0, 24*time.Hour, report)
}

// defaultServer is what the embedded server.toml says.
func defaultServer() Server {
	return Server{
		StateDir: "/var/lib/kagimori-server",
		HSM:      ServerHSM{Kind: "file"},
		Control:  Control{Socket: "/run/kagimori-server/control.sock", Mode: "0660", Operators: []string{}},
		MQTT:     MQTT{Listen: "0.0.0.0:8883"},
		HTTP:     HTTP{Listen: "0.0.0.0:8880"},
		CA: CA{
			IdentityLifetime: durationOf(8760 * time.Hour),
			ServiceLifetime:  durationOf(2160 * time.Hour),
			ServerLifetime:   durationOf(8760 * time.Hour),
			CRLLifetime:      durationOf(24 * time.Hour),
			Backdate:         durationOf(5 * time.Minute),
		},
		Log: defaultLog(),
	}
}

func (s *Server) setDefaults()        { *s = defaultServer() }
func (s *Server) defaultPath() string { return ServerPath }

func (s *Server) check(report report) {
	checkStateDir(s.StateDir, report)
	s.HSM.check(report)
	s.Control.check(report)
	checkListen("mqtt.listen", s.MQTT.Listen, report)
	checkListen("http.listen", s.HTTP.Listen, report)
	s.CA.check(report)
	s.Log.check(report)
}
