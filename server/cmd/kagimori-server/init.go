package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// httpPort is where revocation lists are unless --http says otherwise.
const httpPort = "8880"

func initVerb() *cobra.Command {
	var path, dir, deployment string
	var addresses, http []string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new deployment: its CAs and its database",
		Long: `Makes the state directory of a new deployment: the root CA and the three issuing
CAs, the database, and the group "default" with its security code. The directory
must be missing or empty; it is made whole or not at all.

--address is how terminals reach the server; it goes into bundles and into the
server's certificate, and --http into every certificate, as the place of its
revocation list. Neither can be changed later. Both may be given several times.

Where keys are kept is read from the configuration, as run does.`,
		Example: `  kagimori-server init --deployment demo --address keys.example.com:8883
  kagimori-server init --deployment lab --address 192.0.2.1:8883 --http 192.0.2.1:8880 --dir ./state`,
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration `FILE` (default "+configs.ServerPath+", if it is there)")
	cmd.Flags().StringVar(&dir, "dir", "", "state `DIRECTORY` (default state_dir of the configuration)")
	cmd.Flags().StringVar(&deployment, "deployment", "", "`NAME` of the deployment, for good")
	cmd.Flags().StringArrayVar(&addresses, "address", nil, "`HOST:PORT` under which terminals reach this server")
	cmd.Flags().StringArrayVar(&http, "http", nil, "`HOST:PORT` of revocation lists (default the host of --address, port "+httpPort+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case deployment == "":
			return control.Problemf(control.Usage, "name it: kagimori-server init --deployment NAME --address HOST:PORT", "--deployment is missing")
		case len(addresses) == 0:
			return control.Problemf(control.Usage, fmt.Sprintf("give it: kagimori-server init --deployment %s --address HOST:PORT", deployment),
				"--address is missing: under which address do terminals reach this server?")
		}
		var cfg configs.Server
		if err := configs.Load(path, &cfg); err != nil {
			return err
		}
		if dir != "" {
			cfg.StateDir = dir
		}
		if len(http) == 0 {
			for _, a := range addresses {
				if host, _, err := net.SplitHostPort(a); err == nil {
					http = append(http, net.JoinHostPort(host, httpPort))
				}
			}
		}
		log := configs.Logger(configs.Log{Level: "warn", Format: "text"}, cmd.ErrOrStderr())
		err := server.Init(cmd.Context(), server.InitConfig{
			Dir: cfg.StateDir, Deployment: deployment, Servers: addresses, HTTP: http, Actor: userName(),
			Open: func(ctx context.Context, dir string) (hsm.Module, error) { return openModule(ctx, cfg.HSM, dir, log) },
		}, log)
		if err != nil {
			return err
		}
		return verb.Print(cmd, map[string]any{"deployment": deployment, "dir": cfg.StateDir, "addresses": addresses, "http": http}, func(w io.Writer) {
			verb.Fields(w, "deployment", deployment, "directory", cfg.StateDir)
			fmt.Fprintln(w, "\nBack the directory up as a whole. Next: kagimori-server run")
		})
	}
	return cmd
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// secretPath is where the device secret is unless the configuration says otherwise.
func secretPath(h configs.ServerHSM, dir string) string {
	if h.Path == "" && h.Kind == "file" {
		return filepath.Join(dir, "device.secret")
	}
	return h.Path
}
