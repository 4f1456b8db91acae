package keycopy

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A load is what bare works on: how often each primitive is needed.
type load struct {
	signatures   int // made and checked
	certificates int // that are only checked
	items        int // sealed and opened, by the copy and by TLS below it
	size         int // of an item, in bytes
	key          *ecdsa.PrivateKey
	item, record cipher.AEAD
}

func newLoad(b *testing.B, records []transport.CredentialRecord) (l load) {
	b.Helper()
	l.key, _ = identity(b)
	l.signatures, l.items = 1, len(records) // the Source's, in TLS
	encoded, err := transport.Marshal(&records[0])
	if err != nil {
		b.Fatal(err)
	}
	l.size = len(encoded)
	if l.item, err = chacha20poly1305.New(make([]byte, keySize)); err != nil {
		b.Fatal(err)
	}
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		b.Fatal(err)
	}
	if l.record, err = cipher.NewGCM(block); err != nil {
		b.Fatal(err)
	}
	return l
}

// bare does the cryptography that one copy cannot do without, on both ends:
// CPace, X25519MLKEM768, signatures and certificates, and the ciphers over the
// items; nothing else. Key schedules, hashes and certificates' encodings are not
// in it.
func (l *load) bare(b *testing.B) {
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	prs, ci, sid := make([]byte, 60), make([]byte, 160), make([]byte, 32)
	i, err := startCPace(rand.Reader, prs, ci, sid)
	must(err)
	r, err := startCPace(rand.Reader, prs, ci, sid)
	must(err)
	ya, yb := i.share, r.share
	_, err = i.initiate(nil, yb, nil)
	must(err)
	_, err = r.respond(ya, nil, nil)
	must(err)

	kem, err := mlkem.GenerateKey768()
	must(err)
	crossed, err := mlkem.NewEncapsulationKey768(kem.EncapsulationKey().Bytes()) // as it comes over the wire
	must(err)
	_, ct := crossed.Encapsulate()
	_, err = kem.Decapsulate(ct)
	must(err)
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(err)
	y, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(err)
	_, err = x.ECDH(y.PublicKey())
	must(err)
	_, err = y.ECDH(x.PublicKey())
	must(err)

	digest := sha256.Sum256(ct)
	var sig []byte
	for range l.signatures {
		sig, err = ecdsa.SignASN1(rand.Reader, l.key, digest[:])
		must(err)
		if !ecdsa.VerifyASN1(&l.key.PublicKey, digest[:], sig) {
			b.Fatal("bad signature")
		}
	}
	for range l.certificates {
		if !ecdsa.VerifyASN1(&l.key.PublicKey, digest[:], sig) {
			b.Fatal("bad signature")
		}
	}
	plain, nonce := make([]byte, l.size, l.size+64), make([]byte, 12)
	for n := range l.items {
		binary.BigEndian.PutUint32(nonce[8:], uint32(n))
		for _, c := range []cipher.AEAD{l.item, l.record} {
			_, err := c.Open(plain[:0], nonce, c.Seal(plain[:0], nonce, plain, nil), nil)
			must(err)
		}
	}
}

// BenchmarkCopy copies over loopback TLS, and does the bare cryptography of the
// suite in the same run, in turns: the metric "ratio" compares the median
// processor time of both (goal: 1.5), "best-ratio" the tenth percentile, which
// other programs disturb less. Disk and TPM are not in it.
func BenchmarkCopy(b *testing.B) {
	ca := newFleetCA(b)
	for _, ids := range []bool{false, true} {
		for _, n := range []int{1, 1000} {
			b.Run(fmt.Sprintf("identities=%v/keys=%d", ids, n), func(b *testing.B) {
				r := newRig(b, n)
				r.sourceConfig.Progress, r.targetConfig.Progress = nil, nil
				sourceTLS, targetTLS := ca.config(), ca.config()
				l := newLoad(b, r.records)
				if ids {
					var key *ecdsa.PrivateKey
					sourceTLS, _, r.sourceConfig.Device = ca.enroll(b, "nav-001")
					targetTLS, key, r.targetConfig.Device = ca.enroll(b, "nav-002")
					r.targetConfig.Identity = key
					l.signatures, l.certificates = 3, 2 // and the Target's, in TLS and under the receipt; the root's on both
				}
				address := r.offer(b, sourceTLS)
				var copies, primitives []time.Duration
				for b.Loop() {
					r.sourceConfig.Journal, r.targetConfig.Journal = &shelf{}, &shelf{}
					r.arm("12345678", "12345678")
					start := cpu(b)
					conn, err := tcp.Dial(context.Background(), address, targetTLS)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := Fetch(context.Background(), conn, r.target); err != nil {
						b.Fatal(err)
					}
					<-r.source.done
					middle := cpu(b)
					l.bare(b)
					copies, primitives = append(copies, middle-start), append(primitives, cpu(b)-middle)
				}
				slices.Sort(copies)
				slices.Sort(primitives)
				c, p := copies[len(copies)/2], primitives[len(primitives)/2]
				b.ReportMetric(float64(c)/1e3, "cpu-µs/copy")
				b.ReportMetric(float64(p)/1e3, "cpu-µs/bare")
				b.ReportMetric(float64(c)/float64(p), "ratio")
				b.ReportMetric(float64(copies[len(copies)/10])/float64(primitives[len(primitives)/10]), "best-ratio")
			})
		}
	}
}

// A shelf is a journal without a disk: it takes what it is given.
type shelf struct {
	mu   sync.Mutex
	deal *Transaction
}

var _ Stager = (*shelf)(nil)

func (s *shelf) Find(_ context.Context, id transport.ID) (*Transaction, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deal == nil || s.deal.ID != id {
		return nil, ErrUnknownTransaction
	}
	return s.deal, nil
}

func (s *shelf) Advance(_ context.Context, t *Transaction, _ transport.KeycopyPhase) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deal = t
	return nil
}

func (s *shelf) Stage(_ context.Context, t *Transaction, records []transport.CredentialRecord) (*Transaction, map[transport.Name]string, error) {
	staged := t.in(transport.KeycopyStaged)
	staged.Status = make([]byte, (len(records)+7)/8)
	for n := range records {
		staged.Status[n/8] |= 1 << (n % 8)
	}
	return staged, nil, s.Advance(context.Background(), staged, t.Phase)
}

func BenchmarkCPace(b *testing.B) {
	prs, ci, sid := make([]byte, 60), make([]byte, 160), make([]byte, 32)
	for b.Loop() {
		i, err := startCPace(rand.Reader, prs, ci, sid)
		if err != nil {
			b.Fatal(err)
		}
		r, err := startCPace(rand.Reader, prs, ci, sid)
		if err != nil {
			b.Fatal(err)
		}
		ya := i.share
		if _, err := i.initiate(nil, r.share, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := r.respond(ya, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}
