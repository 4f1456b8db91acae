// The two interfaces that every daemon serves beside its own.

package control

import (
	"context"
	"slices"
	"strings"
)

// builtin is what every daemon serves.
func (s *Server) builtin() []Interface {
	return []Interface{
		{
			Name: "org.varlink.service",
			Doc:  "The Varlink service interface: what this daemon offers.",
			Methods: []Method{
				{Name: "GetInfo", Doc: "Program, version and interfaces.", Out: info{}, Handle: s.getInfo},
				{Name: "GetInterfaceDescription", Doc: "The definition of one interface.",
					In: interfaceParam{}, Out: description{}, Handle: s.getDescription},
			},
		},
		{
			Name: "com.kagimori",
			Doc:  "What every Kagimori daemon offers.",
			Methods: []Method{
				{Name: "Key", Doc: "A key of this connection, to which the caller seals secrets in later calls\n" +
					"of the same connection: HPKE base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,\n" +
					"ChaCha20-Poly1305, info = \"com.kagimori.control/1 \" and the secret's label; base64.",
					Out: keyReply{}, Handle: getKey},
			},
		},
	}
}

// errorsOf lists the errors that an interface defines.
func errorsOf(name string) []string {
	switch name {
	case "org.varlink.service":
		return []string{"InterfaceNotFound (interface: string)", "MethodNotFound (method: string)",
			"MethodNotImplemented (method: string)", "InvalidParameter (parameter: string)",
			"PermissionDenied ()", "ExpectedMore ()"}
	case "com.kagimori":
		return []string{"Problem (kind: string, message: string, next: ?string)"}
	}
	return nil
}

type info struct {
	Vendor     string   `json:"vendor"`
	Product    string   `json:"product"`
	Version    string   `json:"version"`
	URL        string   `json:"url"`
	Interfaces []string `json:"interfaces"`
}

type interfaceParam struct {
	Interface string `json:"interface"`
}

type methodParam struct {
	Method string `json:"method"`
}

type description struct {
	Description string `json:"description"`
}

type keyReply struct {
	Key string `json:"key"`
}

func (s *Server) getInfo(_ context.Context, call *Call) error {
	return call.Reply(info{
		Vendor: "Kagimori", Product: s.opts.Product, Version: s.opts.Version,
		URL: "https://github.com/kagimori/kagimori", Interfaces: s.interfaces,
	})
}

func (s *Server) getDescription(_ context.Context, call *Call) error {
	var in interfaceParam
	if err := call.Params(&in); err != nil {
		return err
	}
	text, ok := s.descriptions[in.Interface]
	if !ok {
		return call.varlinkError(errInterface, in)
	}
	return call.Reply(description{Description: text})
}

func getKey(_ context.Context, call *Call) error {
	if err := call.ensureReader(); err != nil {
		return err
	}
	return call.Reply(keyReply{Key: call.conn.reader.Key()})
}

// split cuts a full method name in interface and method.
func split(full string) (string, string) {
	i := strings.LastIndexByte(full, '.')
	return full[:i], full[i+1:]
}

// offers says whether the interface is served at all.
func (s *Server) offers(name string) bool { return slices.Contains(s.interfaces, name) }
