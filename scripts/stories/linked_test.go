package stories

import (
	"debug/elf"
	"path/filepath"
	"strings"
	"testing"
)

// What the linker put into the agent, third parties' code included: no HTTP
// server, no proxy, no database, no broker goes to a terminal (DESIGN §4). The
// MQTT client brings net/http's types along; its server must not follow.
func TestNoServerIsLinkedIntoTheAgent(t *testing.T) {
	unwanted := []string{
		"net/http.(*Server).", "net/http.ListenAndServe", "net/http.Serve", "net/http/httputil.", "net/http/pprof.", "database/sql.", "html/template.",
		"text/template.(*state).", "modernc.org/", "github.com/mochi-mqtt/", "github.com/prometheus/", "google.golang.org/",
	}
	linked := func(program string) (found []string) {
		f, err := elf.Open(filepath.Join(bin, program))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		symbols, err := f.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range symbols {
			for _, u := range unwanted {
				if elf.ST_TYPE(s.Info) == elf.STT_FUNC && strings.HasPrefix(s.Name, u) {
					found = append(found, s.Name)
				}
			}
		}
		return found
	}
	for _, name := range linked("kagimori") {
		t.Errorf("the agent links %s", name)
	}
	if len(linked("kagimori-server")) < 100 {
		t.Error("the search does not even find the server's server")
	}
}
