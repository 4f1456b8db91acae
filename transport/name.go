package transport

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// A Name is what people call a deployment, terminal, service, credential or
// group: [a-z0-9][a-z0-9-]{0,62}. Names with the prefix "enroll-" are reserved
// for clients that are not enrolled yet (DESIGN D8).
type Name string

// EnrollPrefix opens the client id of a terminal without a certificate.
const EnrollPrefix = "enroll-"

// ErrName is a name that is not one.
var ErrName = errors.New("a name is 1 to 63 characters of a-z, 0-9 and -, and starts with a letter or digit")

// ParseName checks s.
func ParseName(s string) (Name, error) {
	switch {
	case s == "" || len(s) > MaxName || s[0] == '-':
		return "", fmt.Errorf("%q: %w", s, ErrName)
	case strings.HasPrefix(s, EnrollPrefix):
		return "", fmt.Errorf("%q: the prefix %q is reserved for enrollment; choose another name", s, EnrollPrefix)
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "", fmt.Errorf("%q: %w", s, ErrName)
		}
	}
	return Name(s), nil
}

// A DeviceID is the hardware's name: SHA-256 of the DER public identity key
// that hsm made at first start. It is never copied (DESIGN D7).
type DeviceID [sha256.Size]byte

// NewDeviceID hashes a DER SubjectPublicKeyInfo.
func NewDeviceID(spki []byte) DeviceID { return sha256.Sum256(spki) }

// parseDeviceID reads the text form: 64 hexadecimal digits.
func parseDeviceID(s string) (d DeviceID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return d, fmt.Errorf("%q is not a device id: want %d hexadecimal digits", s, 2*len(d))
	}
	return DeviceID(b), nil
}

func (d DeviceID) String() string { return hex.EncodeToString(d[:]) }

// Short is enough of a device id for a person to tell two apart.
func (d DeviceID) Short() string { return d.String()[:12] }

// MarshalText gives the hexadecimal form to JSON and logs.
func (d DeviceID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (d *DeviceID) UnmarshalText(b []byte) (err error) {
	*d, err = parseDeviceID(string(b))
	return err
}

// A URI is the one name that a certificate of ours carries as a subject
// alternative name (DESIGN D7). Exactly one of Terminal and Credential is set,
// or Server is true.
type URI struct {
	Deployment Name
	Terminal   Name // kagimori://<deployment>/terminal/<name>
	Service    Name // kagimori://<deployment>/service/<service>/credential/<id>
	Credential Name
	Server     bool // kagimori://<deployment>/server: the management server
}

const scheme = "kagimori"

func (u URI) String() string { return u.URL().String() }

// URL is the form that x509.Certificate.URIs takes.
func (u URI) URL() *url.URL {
	path := "/server"
	switch {
	case u.Terminal != "":
		path = "/terminal/" + string(u.Terminal)
	case u.Credential != "":
		path = "/service/" + string(u.Service) + "/credential/" + string(u.Credential)
	}
	return &url.URL{Scheme: scheme, Host: string(u.Deployment), Path: path}
}

// ParseURI reads s, which must be exactly what String gives for the result.
func ParseURI(s string) (URI, error) {
	bad := fmt.Errorf("%q is not a name of this system", s)
	rest, ok := strings.CutPrefix(s, scheme+"://")
	if !ok {
		return URI{}, bad
	}
	part := strings.Split(rest, "/")
	u := URI{Deployment: Name(part[0])}
	names := []string{part[0]}
	switch {
	case len(part) == 2 && part[1] == "server":
		u.Server = true
	case len(part) == 3 && part[1] == "terminal":
		u.Terminal = Name(part[2])
		names = append(names, part[2])
	case len(part) == 5 && part[1] == "service" && part[3] == "credential":
		u.Service, u.Credential = Name(part[2]), Name(part[4])
		names = append(names, part[2], part[4])
	default:
		return URI{}, bad
	}
	for _, n := range names {
		if _, err := ParseName(n); err != nil {
			return URI{}, fmt.Errorf("%w: %w", bad, err)
		}
	}
	if u.String() != s {
		return URI{}, bad
	}
	return u, nil
}
