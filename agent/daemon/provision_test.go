package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport/control"
)

// A bundle that belongs to somebody else is a matter of rights, not of names.
func TestBundleThatMayNotBeRead(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read every file")
	}
	path := filepath.Join(t.TempDir(), "b")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := bundleFile.read(path); !strings.Contains(control.AsProblem(err).Next, "sudo") {
		t.Errorf("%+v", control.AsProblem(err))
	}
}

func TestBundleThatIsNotThere(t *testing.T) {
	if _, err := bundleFile.read(filepath.Join(t.TempDir(), "none")); !strings.HasPrefix(control.AsProblem(err).Next, "name the bundle file") {
		t.Errorf("%+v", control.AsProblem(err))
	}
}
