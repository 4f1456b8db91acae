package store

import (
	"encoding/json"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// A Service is what terminals use a credential against, behind a gate.
type Service struct {
	Name      transport.Name
	Gate      transport.Name // terminal that guards it
	DNS       []string       // names and addresses of the gate's certificate; the first is the one to ask for
	Endpoints []string       // host:port, in the order to try them
}

// AddService adds a service and takes its names. A name that another service
// has is ErrTaken.
func (t *Tx) AddService(s Service) error {
	endpoints, err := json.Marshal(s.Endpoints)
	if err != nil {
		return err
	}
	if _, err := t.exec(`INSERT INTO services (name, gate, endpoints, actor, time) VALUES (?, ?, ?, ?, ?)`,
		s.Name, s.Gate, string(endpoints), t.by.Actor, t.now()); err != nil {
		return err
	}
	for place, name := range s.DNS {
		var owner transport.Name
		switch err := t.row(`SELECT service FROM service_names WHERE name = ?`, []any{name}, &owner); err {
		case ErrNotFound:
		case nil:
			return ErrTaken{Name: name, Service: owner}
		default:
			return err
		}
		if _, err := t.exec(`INSERT INTO service_names (name, service, place, actor, time) VALUES (?, ?, ?, ?, ?)`,
			name, s.Name, place, t.by.Actor, t.now()); err != nil {
			return err
		}
	}
	return nil
}

// ErrTaken is a DNS name that belongs to another service.
type ErrTaken struct {
	Name    string
	Service transport.Name
}

func (e ErrTaken) Error() string { return fmt.Sprintf("%s belongs to service %s", e.Name, e.Service) }

// Service finds one by name.
func (t *Tx) Service(name transport.Name) (s Service, err error) {
	var endpoints string
	s.Name = name
	if err = t.row(`SELECT gate, endpoints FROM services WHERE name = ?`, []any{name}, &s.Gate, &endpoints); err != nil {
		return s, err
	}
	if err = json.Unmarshal([]byte(endpoints), &s.Endpoints); err != nil {
		return s, fmt.Errorf("endpoints of service %s: %w", name, err)
	}
	s.DNS, err = all(t, func(r scanner) (n string, err error) { return n, r.Scan(&n) },
		`SELECT name FROM service_names WHERE service = ? ORDER BY place`, name)
	return s, err
}

// Gates lists the terminals that guard services.
func (t *Tx) Gates() ([]transport.Name, error) {
	return all(t, func(r scanner) (n transport.Name, err error) { return n, r.Scan(&n) },
		`SELECT gate FROM services ORDER BY name`)
}
