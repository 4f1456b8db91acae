package server

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// BenchmarkIssue goes from the bytes of a signing request to a certificate
// whose rows, audit entry included, are on the disk.
func BenchmarkIssue(b *testing.B) {
	r := newRigNow(b)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	k := r.as("nav-001", x)
	request := csr(b, newKey(b), transport.URI{})
	var ids []transport.ID
	for len(ids) < b.N {
		err := r.s.store.Update(b.Context(), r.s.by("bench"), func(tx *store.Tx) error {
			for range min(1000, b.N-len(ids)) {
				id, err := r.s.order(tx, "nav-001", transport.CredentialOrder{Credential: r.s.newCredentialID(), Service: "maps",
					Subject: transport.Name(fmt.Sprintf("place-%d", len(ids))), Usage: transport.UsageClient, Transfer: transport.TransferCopy})
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	var next atomic.Int64
	b.SetParallelism(64)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			id := ids[next.Add(1)-1]
			out, err := r.s.credentialRequest(b.Context(), k.ses, &transport.CredentialRequest{Command: id, CSR: request})
			if err != nil {
				b.Error(err)
				return
			}
			if _, ok := out.reply.(*transport.CredentialCertificate); !ok {
				b.Errorf("%v", out.reply)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certificates/s")
}
