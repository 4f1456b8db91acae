// A screen of a machine with a terminal inside, such as a car navigation unit:
// it offers or fetches keys through the agent's control socket, with nobody at a
// keyboard. It is an example to copy from: standard library only, and nothing of
// this repository. docs/control.md explains it.
//
//	screen /run/kagimori/control.sock offer
//	screen /run/kagimori/control.sock fetch 192.0.2.7:8885 <code
package main

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "screen:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: screen SOCKET offer | screen SOCKET fetch HOST:PORT")
	}
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	a := &agent{c, bufio.NewReader(c)}
	if args[1] == "offer" {
		return offer(a, out)
	}
	code, err := bufio.NewReader(in).ReadBytes('\n') // of a touch screen
	if err != nil || len(args) < 3 {
		return fmt.Errorf("fetch takes HOST:PORT, and the code as a line of standard input: %w", err)
	}
	return fetch(a, args[2], bytes.TrimSpace(code), out)
}

// event has what this screen shows of an event; docs/replace.md has the rest.
type event struct {
	Step       string   `json:"step"`
	Text       string   `json:"text"`
	Code       string   `json:"code"`
	Addresses  []string `json:"addresses"`
	Invitation string   `json:"invitation"`
	QR         []string `json:"qr"`
	Item       int      `json:"item"`
	Items      int      `json:"items"`
	Next       string   `json:"next"`
}

// offer makes a key pair for the answer, since the code does not cross the socket
// in clear, and shows what comes.
func offer(a *agent, out io.Writer) error {
	key, err := kem().GenerateKey()
	if err != nil {
		return err
	}
	in := map[string]any{"reply_key": base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())}
	return a.call("com.kagimori.agent.KeycopyOffer", in, func(raw json.RawMessage) error {
		var ev event
		if err := json.Unmarshal(raw, &ev); err != nil {
			return err
		}
		if ev.Step == "armed" {
			sealed, err := base64.StdEncoding.DecodeString(ev.Code)
			if err != nil {
				return err
			}
			code, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info+"operator code"), sealed)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "code %s\nat %v\nfor a camera, %d by %d: %s\n", code, ev.Addresses, len(ev.QR), len(ev.QR), ev.Invitation)
			clear(code)
		}
		return show(out, ev)
	})
}

// fetch seals the code to a key that the agent makes for this connection.
func fetch(a *agent, address string, code []byte, out io.Writer) error {
	var key struct {
		Key string `json:"key"`
	}
	if err := a.call("com.kagimori.Key", nil, func(raw json.RawMessage) error { return json.Unmarshal(raw, &key) }); err != nil {
		return err
	}
	b, err := base64.StdEncoding.DecodeString(key.Key)
	if err != nil {
		return err
	}
	to, err := kem().NewPublicKey(b)
	if err != nil {
		return err
	}
	sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info+"operator code"), code)
	if err != nil {
		return err
	}
	clear(code)
	in := map[string]any{"address": address, "code": base64.StdEncoding.EncodeToString(sealed)}
	return a.call("com.kagimori.agent.KeycopyFetch", in, func(raw json.RawMessage) error {
		var ev event
		if err := json.Unmarshal(raw, &ev); err != nil {
			return err
		}
		return show(out, ev)
	})
}

// show stands for drawing: a bar for items, a line for the rest.
func show(out io.Writer, ev event) error {
	if ev.Step == "item" {
		_, err := fmt.Fprintf(out, "%3d %%\n", 100*ev.Item/ev.Items)
		return err
	}
	_, err := fmt.Fprintf(out, "%s: %s\n%s", ev.Step, ev.Text, ev.Next)
	return err
}

// info is what secrets on the control socket are sealed for; their label follows.
const info = "com.kagimori.control/1 "

func kem() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// agent is a connection to the daemon: Varlink, that is JSON and a NUL byte.
type agent struct {
	c net.Conn
	r *bufio.Reader
}

// call calls a method and gives each of its answers to each.
func (a *agent) call(method string, in any, each func(json.RawMessage) error) error {
	if in == nil {
		in = struct{}{}
	}
	request, err := json.Marshal(map[string]any{"method": method, "parameters": in, "more": true})
	if err != nil {
		return err
	}
	if _, err := a.c.Write(append(request, 0)); err != nil {
		return err
	}
	for {
		answer, err := a.r.ReadBytes(0)
		if err != nil {
			return err
		}
		var r struct {
			Error      string          `json:"error"`
			Parameters json.RawMessage `json:"parameters"`
			Continues  bool            `json:"continues"`
		}
		if err := json.Unmarshal(answer[:len(answer)-1], &r); err != nil {
			return err
		}
		if r.Error != "" { // its kind, message and next step
			return fmt.Errorf("%s: %s", r.Error, r.Parameters)
		}
		if err := each(r.Parameters); err != nil || !r.Continues {
			return err
		}
	}
}
