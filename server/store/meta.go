package store

import (
	"encoding/json"
	"fmt"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// PutMeta sets one value of the installation.
func (t *Tx) PutMeta(key string, value []byte) error {
	_, err := t.exec(`INSERT INTO meta (key, value, actor, time) VALUES (?, ?, ?, ?)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value, actor = excluded.actor, time = excluded.time`,
		key, value, t.by.Actor, t.now())
	return err
}

// Meta reads it back; ErrNotFound when it was never set.
func (t *Tx) Meta(key string) (value []byte, err error) {
	err = t.row(`SELECT value FROM meta WHERE key = ?`, []any{key}, &value)
	return value, err
}

// A Deployment is what init decided for good.
type Deployment struct {
	Name transport.Name `json:"name"`
	// Servers are host:port of MQTT, as bundles name them.
	Servers []string `json:"servers"`
	// HTTP are host:port where certificates say that revocation lists are.
	HTTP []string `json:"http"`
}

const metaDeployment = "deployment"

// PutDeployment stores it.
func (t *Tx) PutDeployment(d Deployment) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return t.PutMeta(metaDeployment, data)
}

// Deployment reads it.
func (t *Tx) Deployment() (d Deployment, err error) {
	data, err := t.Meta(metaDeployment)
	if err != nil {
		return d, fmt.Errorf("read deployment: %w", err)
	}
	return d, json.Unmarshal(data, &d)
}

// An Authority is one CA: its certificate and the blob of its key.
type Authority struct {
	Name        string
	Certificate []byte // DER
	Key         hsm.Blob
}

// PutAuthority adds a CA. There is no way to change one.
func (t *Tx) PutAuthority(a Authority) error {
	_, err := t.exec(`INSERT INTO authorities (name, certificate, key, actor, time) VALUES (?, ?, ?, ?, ?)`,
		a.Name, a.Certificate, []byte(a.Key), t.by.Actor, t.now())
	return err
}

// Authorities lists the CAs.
func (t *Tx) Authorities() ([]Authority, error) {
	return all(t, func(r scanner) (a Authority, err error) {
		err = r.Scan(&a.Name, &a.Certificate, (*[]byte)(&a.Key))
		return a, err
	}, `SELECT name, certificate, key FROM authorities ORDER BY name`)
}
