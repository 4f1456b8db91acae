package tpm_test

import (
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// The suite over two device nodes of a real kernel, named in
// KAGIMORI_TPM_NODES=/dev/tpmrm0,/dev/tpmrm1. `make soak` runs it on an emulated
// board (scripts/stories); on a board of your own, mind that it uses the chip.
func TestSoakDeviceNodes(t *testing.T) {
	nodes := strings.Split(os.Getenv("KAGIMORI_TPM_NODES"), ",")
	if len(nodes) < 2 {
		t.Skip("KAGIMORI_TPM_NODES does not name two device nodes")
	}
	next := 0
	hsmtest.Run(t, func(t *testing.T) hsmtest.Open {
		node := nodes[next%2]
		next++
		return func(t *testing.T) hsm.Module {
			m := open(t, node)
			if m.Level() != hsm.LevelTPM {
				t.Errorf("level of %s: %s", node, m.Level())
			}
			return m
		}
	})
}
