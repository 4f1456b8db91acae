package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// GateAddParams: the service, the DNS names and addresses that its gate's
// certificate gets (the first is the one that terminals ask for), and where
// terminals find it. ReplyKey is a control.Reader's.
type GateAddParams struct {
	Service   string   `json:"service"`
	DNS       []string `json:"dns"`
	Endpoints []string `json:"endpoints,omitempty"` // host:port; default: the first of DNS, gatePort
	Group     string   `json:"group,omitempty"`     // default: DefaultGroup
	ReplyKey  string   `json:"reply_key"`
}

const (
	gatePrefix = "gate-"
	gatePort   = "8443"
	// maxServiceNames and maxEndpoints bound what every credential's holder is sent.
	maxServiceNames, maxEndpoints = 16, 16
	maxEndpoint                   = 253 + len(":65535")
)

func (s *Server) gateAdd(ctx context.Context, call *control.Call) error {
	var in GateAddParams
	if err := call.Params(&in); err != nil {
		return err
	}
	service, err := s.parseService(in)
	if err != nil {
		return err
	}
	key := hsm.RandomSecret(transport.CommonKeySize)
	defer key.Wipe()
	x := store.Terminal{Name: service.Gate, Kind: store.KindGate, Service: service.Name}
	b, reply, err := s.bundle(ctx, in.Group, &x, key, in.ReplyKey)
	if err != nil {
		return err
	}
	x.Group = b.Group
	err = s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		if err := tx.AddTerminal(x, key); err != nil {
			return outcome{}, taken(err, x.Name)
		}
		err := tx.AddService(service)
		if other, ok := errors.AsType[store.ErrTaken](err); ok {
			return outcome{}, control.Problemf(control.Conflict, "give this gate a name of its own", "%w", other)
		}
		if err != nil {
			return outcome{}, err
		}
		if _, err := s.orderServer(tx, service); err != nil {
			return outcome{}, err
		}
		return outcome{}, errors.Join(putBundle(tx, b),
			tx.Audit("gate.add", string(x.Name), fmt.Sprintf("service %s names %s", service.Name, strings.Join(service.DNS, " "))))
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

// parseService checks what a person said about a service.
func (s *Server) parseService(in GateAddParams) (v store.Service, err error) {
	if v.Name, err = parseName("service", in.Service); err != nil {
		return v, err
	}
	if v.Gate, err = parseName("gate", gatePrefix+in.Service); err != nil {
		return v, err
	}
	if len(in.DNS) == 0 || len(in.DNS) > maxServiceNames || len(in.Endpoints) > maxEndpoints {
		return v, control.Problemf(control.BadInput, "name it with --dns", "a gate needs 1 to %d names and at most %d endpoints", maxServiceNames, maxEndpoints)
	}
	management := hostsOf(s.deployment.Servers)
	for _, given := range in.DNS {
		name := strings.ToLower(strings.TrimSuffix(given, "."))
		if ip := net.ParseIP(name); ip != nil {
			name = ip.String()
		}
		if err := ca.CheckHost(name); err != nil {
			return v, control.Problemf(control.BadInput, "give the DNS name or address under which terminals reach the gate", "gate name %w", err)
		}
		if slices.ContainsFunc(management, func(h string) bool { return ca.SameHost(h, name) }) {
			return v, control.Problemf(control.Conflict, "give the gate a DNS name of its own: with this one it could pose as the management server",
				"%s is the management server's name", name)
		}
		if !slices.Contains(v.DNS, name) {
			v.DNS = append(v.DNS, name)
		}
	}
	v.Endpoints = slices.Clone(in.Endpoints)
	if len(v.Endpoints) == 0 {
		v.Endpoints = []string{net.JoinHostPort(v.DNS[0], gatePort)}
	}
	for _, e := range v.Endpoints {
		if err := checkAddress(e); err != nil {
			return v, control.Problemf(control.BadInput, "give endpoints as HOST:PORT", "endpoint %w", err)
		}
	}
	return v, nil
}

// checkAddress checks a host:port that others will dial.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || len(address) > maxEndpoint {
		return fmt.Errorf("%.300q is not HOST:PORT", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", address)
	}
	return ca.CheckHost(strings.ToLower(host))
}

// orderServer tells a gate to get the certificate that it shows to terminals.
func (s *Server) orderServer(tx *store.Tx, v store.Service) (transport.ID, error) {
	return s.order(tx, v.Gate, transport.CredentialOrder{
		Credential: s.newCredentialID(), Service: v.Name, Subject: v.Gate, Usage: transport.UsageServer, DNS: v.DNS, Transfer: transport.TransferNever,
	})
}

// gateAgain prepares a gate that enrolls anew: what it showed to terminals
// so far is revoked, and it is told to get another.
func (s *Server) gateAgain(tx *store.Tx, x store.Terminal) (out outcome, err error) {
	service, err := tx.Service(x.Service)
	if err != nil {
		return out, err
	}
	c, err := tx.CredentialAt(service.Name, service.Gate, transport.UsageServer)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return out, err
	case c.State == store.CredentialOrdered:
		return out, nil // the order waits for whoever enrolls
	default:
		w, err := withdraw(tx, x.Name, "the gate is to enroll anew")
		if err != nil {
			return out, err
		}
		out.settled = w.settled
		issuer, err := s.endCredential(tx, c.ID, ca.ReasonSuperseded)
		if err := errors.Join(err, tx.EndHoldingsOf(c.ID), s.relist(tx, issuer)); err != nil {
			return out, err
		}
		out.revoked = []string{issuer}
	}
	_, err = s.orderServer(tx, service)
	return out, err
}
