package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport/control"
)

// How the configuration binds keys to the boot: registers, whose approvals count,
// and where they lie.

const (
	approvalSuffix = ".approval"
	maxAuthority   = 16 << 10 // bytes of a PEM file
)

// boot is [hsm] boot_registers and what belongs to it.
type boot struct {
	registers []int
	authority *ecdsa.PublicKey // nil: none
	dir       string           // "": none
	where     open.Config
	log       *slog.Logger

	mu   sync.Mutex
	told map[string]string // guarded by mu: files that were complained about
}

func newBoot(keys configs.HSM, where open.Config, log *slog.Logger) (*boot, error) {
	b := &boot{registers: keys.BootRegisters, dir: keys.BootApprovals, where: where, log: log, told: map[string]string{}}
	if keys.BootAuthority == "" {
		return b, nil
	}
	data, err := readSmall(keys.BootAuthority, maxAuthority)
	if err == nil {
		b.authority, err = parseAuthority(data)
	}
	if err != nil {
		return nil, control.Problemf(control.Config, "name a PEM file with a P-256 public key, or a certificate of one", "boot_authority: %w", err)
	}
	return b, nil
}

// parseAuthority reads a public key, or takes it from a certificate.
func parseAuthority(data []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("it has no PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		var c *x509.Certificate
		if c, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = c.PublicKey
		}
	default:
		return nil, fmt.Errorf("it holds a %q", block.Type)
	}
	if err != nil {
		return nil, err
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, errors.New("it is not a P-256 key")
	}
	return public, nil
}

func (b *boot) store() *store.Boot {
	s := &store.Boot{Policy: hsm.BootPolicy{Registers: b.registers, Authority: b.authority}}
	if b.authority != nil {
		s.Approvals = b.approvals
	}
	return s
}

func (b *boot) agent() *agent.BootConfig {
	c := &agent.BootConfig{Registers: b.registers, Read: b.read}
	if b.authority != nil {
		c.Authority, c.Approvals = fingerprint(b.authority), b.files
	}
	return c
}

func fingerprint(key *ecdsa.PublicKey) string {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "?"
	}
	sum := sha256.Sum256(spki)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// read reads registers while the daemon has key storage not open.
func (b *boot) read(ctx context.Context, registers []int) (hsm.PCRs, error) {
	m, err := open.Module(ctx, b.where, b.log)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	sealer, ok := m.(hsm.BootSealer)
	if !ok {
		return nil, fmt.Errorf("%w: this key storage has no registers", hsm.ErrNotMeasured)
	}
	return sealer.PCRs(ctx, registers)
}

// approvals gives what can be used. A file that cannot is named in the log, once.
func (b *boot) approvals() (list []hsm.Approval, err error) {
	for _, f := range b.files() {
		if f.Problem == "" {
			list = append(list, f.Approval)
			continue
		}
		b.mu.Lock()
		news := b.told[f.File] != f.Problem
		b.told[f.File] = f.Problem
		b.mu.Unlock()
		if news {
			b.log.Warn("a boot approval is not used", "file", filepath.Join(b.dir, f.File), "err", f.Problem)
		}
	}
	return list, nil
}

// files looks at every file of the directory, newest first. At most as many as
// the chip is offered are good.
func (b *boot) files() []agent.ApprovalFile {
	list := []agent.ApprovalFile{}
	if b.dir == "" {
		return list
	}
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return list
	}
	if err != nil {
		return append(list, agent.ApprovalFile{File: ".", Problem: err.Error()})
	}
	at := map[string]time.Time{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), approvalSuffix) {
			continue
		}
		if fi, err := e.Info(); err == nil {
			at[e.Name()] = fi.ModTime()
		}
		list = append(list, b.look(e.Name()))
	}
	sort.SliceStable(list, func(i, j int) bool { return at[list[i].File].After(at[list[j].File]) })
	good := 0
	for i := range list {
		if list[i].Problem == "" {
			if good++; good > tpm.MaxApprovals {
				list[i].Problem = fmt.Sprintf("there are more than %d newer ones: remove what no machine boots any more", tpm.MaxApprovals)
			}
		}
	}
	return list
}

func (b *boot) look(name string) agent.ApprovalFile {
	f := agent.ApprovalFile{File: name}
	data, err := readSmall(filepath.Join(b.dir, name), hsm.MaxApprovalFile)
	if err == nil {
		f.Approval, err = hsm.ParseApproval(data)
	}
	if err == nil {
		err = tpm.CheckApproval(b.authority, f.Approval)
	}
	for _, n := range b.registers {
		if _, ok := f.Approval.Values[n]; err == nil && (!ok || len(f.Approval.Values) != len(b.registers)) {
			err = fmt.Errorf("it is for other registers than %v", b.registers)
		}
	}
	if err != nil {
		f.Problem = err.Error()
	}
	return f
}

func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // not waiting for a pipe
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}
