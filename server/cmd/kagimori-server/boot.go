package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func bootVerbs() *cobra.Command {
	return verb.Group("boot", "Boots of terminals, approved by their vendor",
		"A terminal whose keys are bound to how it was booted opens them under every boot\nthat the holder of one key has approved (boot_authority). No server is needed: the\nkey belongs where the updates are built.",
		bootApprove())
}

// approved is what boot approve prints.
type approved struct {
	File      string   `json:"file"`
	Registers []string `json:"registers"`
}

func bootApprove() *cobra.Command {
	var keyPath, out string
	var registers []string
	cmd := &cobra.Command{
		Use:   "approve",
		Short: "Sign the measurements of a boot that is good",
		Long: `Writes an approval: a file for boot_approvals of the terminals, to be shipped with an
update. It names the registers that the update will lead to, which whoever builds it
knows, or finds with "kagimori boot show" on a machine that runs it. A terminal uses
it if it names exactly its boot_registers. An approval cannot be taken back: the key
signs good boots only. Works without a server.`,
		Example: "  kagimori-server boot approve --key vendor.pem --register 7=65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068 -o 2026-01.approval",
	}
	cmd.Flags().StringVar(&keyPath, "key", "", "PEM `FILE` with the vendor's private P-256 key")
	cmd.Flags().StringArrayVar(&registers, "register", nil, "`N=HEX`: register and its value, SHA-256 bank; may be given several times")
	cmd.Flags().StringVarP(&out, "out", "o", "", "`FILE` for the approval, which must not exist")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for name, value := range map[string]string{"key": keyPath, "out": out} {
			if value == "" {
				return control.Problemf(control.Usage, "see: kagimori-server boot approve --help", "--%s is missing", name)
			}
		}
		if len(registers) == 0 {
			return control.Problemf(control.Usage, "see: kagimori-server boot approve --help", "--register is missing")
		}
		a, err := approve(keyPath, registers)
		if err != nil {
			return err
		}
		data, err := hsm.FormatApproval(a)
		if err != nil {
			return err
		}
		err = hsm.CreateFile(out, data, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return control.Problemf(control.Conflict, "move it away, or choose another file with --out", "%s exists already", out)
		}
		if err != nil {
			return control.Problemf(control.BadInput, "choose another file with --out", "keep the approval: %w", err)
		}
		return verb.Print(cmd, approved{File: out, Registers: registers}, func(w io.Writer) {
			fmt.Fprintf(w, "%s approves a boot with %d registers; put it into boot_approvals of the terminals, with the ending .approval\n", out, len(a.Values))
		})
	}
	return cmd
}

func approve(keyPath string, registers []string) (a hsm.Approval, err error) {
	signer, err := vendorKey(keyPath)
	if err != nil {
		return a, control.Problemf(control.BadInput, "name a PEM file with a P-256 private key, such as openssl genpkey makes", "--key: %w", err)
	}
	values := hsm.PCRs{}
	for _, r := range registers {
		v, err := hsm.ParsePCR(r)
		if err != nil {
			return a, control.Problemf(control.BadInput, "write --register 7=HEX", "--register: %w", err)
		}
		for n := range v {
			if _, twice := values[n]; twice {
				return a, control.Problemf(control.BadInput, "name each register once", "--register: %d is there twice", n)
			}
		}
		maps.Copy(values, v)
	}
	if a, err = tpm.Approve(signer, values); err != nil {
		return a, control.Problemf(control.BadInput, "name registers into which something was measured, at most 8", "%w", err)
	}
	return a, nil
}

// maxKeyFile bounds a PEM file.
const maxKeyFile = 16 << 10

// vendorKey reads a private key in PKCS#8 or SEC 1.
func vendorKey(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	defer clear(data)
	block, _ := pem.Decode(data)
	if block == nil || len(data) > maxKeyFile {
		return nil, errors.New("it is no PEM file of a key")
	}
	defer clear(block.Bytes)
	if block.Type == "EC PARAMETERS" {
		return nil, errors.New("its first block is not the key: remove EC PARAMETERS")
	}
	var key any
	if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		key, err = x509.ParseECPrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, errors.New("it holds no private key, or an encrypted one")
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return nil, errors.New("it is not a P-256 key")
	}
	return private, nil
}
