package verb

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is set by the linker (-X) and by nothing else; a main hands it to New.
var Version string

// build is what the version verb says.
type build struct {
	Program  string            `json:"program"`
	Version  string            `json:"version"`
	Go       string            `json:"go"`
	Platform string            `json:"platform"`
	Revision string            `json:"revision,omitempty"`
	Modules  map[string]string `json:"modules"`
}

func (f *Frame) versionVerb() *cobra.Command {
	name := f.root.Name()
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program and what it is built from",
		Long: "Shows the version of this program, of Go, and of every module built into it.\n" +
			"It asks no daemon.",
		Example: "  " + name + " version\n  " + name + " version --json | jq -r .version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := readBuild(name, f.version)
			return Print(cmd, b, func(w io.Writer) {
				fmt.Fprintf(w, "%s %s (%s, %s)\n", b.Program, b.Version, b.Go, b.Platform)
			})
		},
	}
}

func readBuild(name, version string) build {
	b := build{
		Program: name, Version: version, Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH, Modules: map[string]string{},
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Modules[m.Path] = m.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}
