package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// Who could write to the disk puts a store of his own in the place of the one
// that is set aside, with a wrap that he made himself for the recovery key that
// every terminal is given. The administrator approves what he has asked for.
func TestForgedStoreBringsNoTrust(t *testing.T) {
	s, _ := newStage(t, open.KindFile)
	s.start()
	s.enroll()
	s.connect()
	s.issued("cr-1")
	was := s.vault().device
	var good holdingRecord
	err := s.vault().store.View(func(tx *store.Tx) error {
		_, err := tx.Get(bucketCredentials, "cr-1", &good)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.lose(nil)
	if err := s.a.try(t.Context(), Remedy{Aside: "lost"}); err != nil {
		t.Fatal(err)
	}
	s.stop()
	forgeStore(t, s, was, good)
	s.start()
	s.enroll()
	s.srv.approve = true
	s.connect()
	if left, err := asides(s.dir); err != nil || len(left) != 0 {
		t.Errorf("not taken over: %v, %v", left, err)
	}
	if got := s.holds(); !slices.Equal(got, []transport.Name{"cr-1"}) {
		t.Errorf("holds %v", got)
	}
}

// forgeStore puts a store into aside/2, sealed under a key of the attacker's.
func forgeStore(t *testing.T, s *stage, was transport.DeviceID, good holdingRecord) {
	t.Helper()
	at := filepath.Join(s.dir, asideDir, "2")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := file.Open(filepath.Join(t.TempDir(), "device.secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	kept, err := store.Open(context.Background(), StoreConfig{Dir: at}.config(), m, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	w := transport.RecoveryWrap{Version: 1, Deployment: testDeployment, Device: was, Store: transport.ID{7}}
	if err := kept.WithKey(func(key *hsm.Secret) error { return w.Seal(s.srv.recoveryKey, key.Bytes()) }); err != nil {
		t.Fatal(err)
	}
	blob, err := transport.Marshal(&w)
	if err != nil {
		t.Fatal(err)
	}
	evil := newServer(t) // another deployment's root, which the attacker has
	astray, forged := good, good
	astray.Record.ID, astray.Record.Anchors, astray.Record.Endpoints = "cr-astray", [][]byte{evil.ca.root.Raw}, []string{"198.51.100.66:443"}
	forged.Record.ID = "cr-evil" // with the certificate of another
	err = kept.Update(func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob(blobStoreID, w.Store[:]), tx.PutBlob(blobWrap, blob),
			tx.Put(bucketRecovery, keyDevice, &deviceRecord{Device: was}),
			tx.Put(bucketCredentials, "cr-1", &good),
			tx.Put(bucketCredentials, "cr-evil", &forged), tx.Put(bucketCredentials, "cr-astray", &astray))
	})
	if err != nil {
		t.Fatal(err)
	}
}
