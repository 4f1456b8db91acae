package configs

import (
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written as "15m" or "300s".
type Duration struct {
	d   time.Duration
	bad string // what was written instead, quoted; check reports it with key and line
}

// durationOf makes one.
func durationOf(d time.Duration) Duration { return Duration{d: d} }

// D is the time.Duration.
func (d Duration) D() time.Duration { return d.d }

// String and MarshalText write it as Go does: "15m0s".
func (d Duration) String() string               { return d.d.String() }
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads it. It leaves complaints to the check of the section,
// which knows the key.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration{d: v}
	if err != nil {
		d.bad = strconv.Quote(string(text))
	}
	return nil
}

func (d Duration) check(key string, low, high time.Duration, report report) {
	if d.bad != "" {
		report(key, "%s is not a duration such as \"90s\", \"15m\" or \"24h\"", d.bad)
		return
	}
	if d.D() < low || d.D() > high {
		report(key, "%v is outside %v to %v", d, low, high)
	}
}

// HSM says where keys at rest are kept.
type HSM struct {
	// Kind is "file" or "tpm".
	Kind string `toml:"kind"`
	// Path of the device secret or of the TPM; empty is the kind's default:
	// <state_dir>/device.secret or /dev/tpmrm0. "credential:NAME" is a device
	// secret that systemd passes.
	Path string `toml:"path"`
	// Passphrase is where the passphrase of kind "file" comes from, if one is set:
	// "ask", "credential:NAME" or the path of a file.
	Passphrase string `toml:"passphrase"`
	// BootRegisters are the PCRs that say how the machine was booted; with some,
	// kind "tpm" keeps keys for such a boot only.
	BootRegisters []int `toml:"boot_registers"`
	// BootAuthority is a PEM file with the P-256 key of whoever approves boots.
	BootAuthority string `toml:"boot_authority"`
	// BootApprovals is the directory with what was approved.
	BootApprovals string `toml:"boot_approvals"`
}

// maxBootRegisters and lastRegister bound BootRegisters.
const maxBootRegisters, lastRegister = 8, 23

func (h HSM) checkBoot(report report) {
	seen := map[int]bool{}
	for _, n := range h.BootRegisters {
		if n < 0 || n > lastRegister || seen[n] {
			report("hsm.boot_registers", "%d is not a register from 0 to %d, named once", n, lastRegister)
		}
		seen[n] = true
	}
	switch bound := len(h.BootRegisters) > 0; {
	case len(h.BootRegisters) > maxBootRegisters:
		report("hsm.boot_registers", "names %d registers, at most %d can be used", len(h.BootRegisters), maxBootRegisters)
	case bound && h.Kind != "tpm":
		report("hsm.boot_registers", "is for kind \"tpm\" only: a file cannot know how the machine was booted")
	case !bound && h.BootAuthority != "":
		report("hsm.boot_authority", "is of no use without boot_registers")
	case h.BootApprovals != "" && h.BootAuthority == "":
		report("hsm.boot_approvals", "is of no use without boot_authority")
	}
	for key, path := range map[string]string{"hsm.boot_authority": h.BootAuthority, "hsm.boot_approvals": h.BootApprovals} {
		if path != "" && !strings.HasPrefix(path, "/") {
			report(key, "%q is not an absolute path", path)
		}
	}
}

func (h HSM) check(report report) {
	ServerHSM{Kind: h.Kind, Path: h.Path}.check(report)
	const key = "hsm.passphrase"
	_, credential := checkCredential(key, h.Passphrase, report)
	switch {
	case h.Passphrase == "ask" || credential:
	case !strings.HasPrefix(h.Passphrase, "/"):
		report(key, "%q is none of \"ask\", \"credential:NAME\" and the absolute path of a file", h.Passphrase)
	}
	h.checkBoot(report)
	if h.Kind == "tpm" && h.Passphrase != "ask" {
		report(key, "is for kind \"file\" only: a TPM keeps keys without a passphrase")
	}
}

// ServerHSM is HSM for the management server, which has no passphrase: it must
// come up by itself.
type ServerHSM struct {
	Kind string `toml:"kind"`
	Path string `toml:"path"`
}

func (h ServerHSM) check(report report) {
	if h.Kind != "file" && h.Kind != "tpm" {
		report("hsm.kind", "%q is neither \"file\" nor \"tpm\"", h.Kind)
	}
	if _, ok := checkCredential("hsm.path", h.Path, report); ok && h.Kind == "tpm" {
		report("hsm.path", "%q: a credential is a device secret, for kind \"file\"", h.Path)
	}
}

// credential is what systemd takes as the name of one, and a path needs no
// escaping for.
// isCredential says whether s may name a systemd credential.
func isCredential(s string) bool {
	return 0 < len(s) && len(s) <= 100 && s[0] != '.' && strings.Trim(s, letters+strings.ToUpper(letters)+digits+"._-") == ""
}

// checkCredential gives NAME of "credential:NAME", and whether it is one.
func checkCredential(key, value string, report report) (string, bool) {
	name, ok := strings.CutPrefix(value, "credential:")
	if ok && !isCredential(name) {
		report(key, "%q is not a name of a credential: letters, digits, dots, dashes and underscores", name)
	}
	return name, ok
}

// Control is the socket on which the daemon answers the command line (D13).
type Control struct {
	// Socket is its path.
	Socket string `toml:"socket"`
	// Mode of the socket in octal: whom the file system lets in.
	Mode string `toml:"mode"`
	// Operators are user names or numbers that may operate.
	Operators []string `toml:"operators"`
}

// FileMode is Mode as a number.
func (c Control) FileMode() fs.FileMode {
	m, _ := strconv.ParseUint(c.Mode, 8, 12) // check has seen it
	return fs.FileMode(m)
}

func (c Control) check(report report) {
	if c.Socket == "" {
		report("control.socket", "is empty")
	}
	if m, err := strconv.ParseUint(c.Mode, 8, 12); err != nil || m&^0o777 != 0 || m&0o600 != 0o600 {
		report("control.mode", "%q is not an octal mode such as \"0660\" that lets the owner in", c.Mode)
	}
	for _, o := range c.Operators {
		if strings.TrimSpace(o) == "" {
			report("control.operators", "has an empty name")
		}
	}
}

// Link is the connection to the management server.
type Link struct {
	// Poll is how often the server is asked for commands on an open link.
	Poll Duration `toml:"poll"`
	// MaxBackoff is the longest pause between two attempts to connect.
	MaxBackoff Duration `toml:"max_backoff"`
}

func (l Link) check(report report) {
	l.Poll.check("link.poll", time.Second, 24*time.Hour, report)
	l.MaxBackoff.check("link.max_backoff", time.Second, 24*time.Hour, report)
}

// Log says what is logged and how; it goes to standard error.
type Log struct {
	// Level is "debug", "info", "warn" or "error".
	Level string `toml:"level"`
	// Format is "text" or "json".
	Format string `toml:"format"`
}

func (l Log) check(report report) {
	if _, ok := l.level(); !ok {
		report("log.level", "%q is none of \"debug\", \"info\", \"warn\", \"error\"", l.Level)
	}
	if l.Format != "text" && l.Format != "json" {
		report("log.format", "%q is neither \"text\" nor \"json\"", l.Format)
	}
}

func (l Log) level() (slog.Level, bool) {
	switch l.Level {
	case "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn":
		return slog.LevelWarn, true
	case "error":
		return slog.LevelError, true
	}
	return slog.LevelInfo, false
}

// Logger makes the logger that a program passes down.
func Logger(l Log, w io.Writer) *slog.Logger {
	level, _ := l.level()
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// checkListen wants HOST:PORT with a number; an empty host is every address.
func checkListen(key, address string, report report) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		report(key, "%q is not HOST:PORT", address)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		report(key, "%q has no port from 0 to 65535", address)
	}
}

// UnixPath is the path in "unix:/run/x.sock", and whether it is one.
func UnixPath(address string) (string, bool) {
	path, ok := strings.CutPrefix(address, "unix:")
	return path, ok && strings.HasPrefix(path, "/")
}

// isLoopback says whether HOST:PORT stays on this machine.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

const (
	letters = "abcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
)

// isName says whether a terminal or service may be called s (D7).
func isName(s string) bool {
	return 0 < len(s) && len(s) <= 63 && s[0] != '-' && strings.Trim(s, letters+digits+"-") == ""
}
