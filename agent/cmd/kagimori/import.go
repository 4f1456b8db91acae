package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// importFlags are what may be said about a credential in arguments: nothing
// that is secret.
type importFlags struct {
	kind, form, service, subject, transfer, expires, replace, login, encoding string
}

func credentialImport() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Take in a key, a key pair or a password of a service",
		Long: `Takes in a credential that this deployment's server does not issue. The secret is
read from the terminal without echo, or from standard input, never from arguments;
it is kept sealed, and goes out again only by a key copy: there is no export.

  symmetric   a key for authentication, 32 to 64 bytes (with --form raw 16 to 64);
              one line in base64 or, with --encoding hex, in hexadecimal
  encryption  a key for encryption, 16 to 64 bytes, likewise
  login       the password of --login, one line
  key-pair    a private key, ECDSA, Ed25519 or RSA, as PKCS#8 in PEM on standard
              input (openssl pkcs8 -topk8 -nocrypt), not encrypted

The server learns of it when a key copy is reported, and never sees the secret.`,
		Example: "  openssl rand -base64 32 | sudo kagimori credential import --kind symmetric --service maps --subject truck-7\n" +
			"  sudo kagimori credential import --kind login --login truck-7 --service portal --subject truck-7 --transfer move\n" +
			"  sudo kagimori credential import --kind key-pair --service vpn --subject truck-7 --expires 2027-12-31 < vpn.pem",
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.kind, "kind", "", "`KIND`: symmetric, encryption, login or key-pair")
	flags.StringVar(&f.form, "form", "", "`FORM` of a symmetric key: hmac or raw (default hmac)")
	flags.StringVar(&f.service, "service", "", "`SERVICE` that it is for")
	flags.StringVar(&f.subject, "subject", "", "`NAME` of the place that is registered at the service")
	flags.StringVar(&f.transfer, "transfer", "", "what may happen to it when the terminal is replaced, `HOW` is copy, move or never (default copy)")
	flags.StringVar(&f.expires, "expires", "", "`DATE` after which it is not used, 2027-12-31 or RFC 3339 (default never)")
	flags.StringVar(&f.replace, "replace", "", "`ID` of the one whose secret it takes the place of")
	flags.StringVar(&f.login, "login", "", "`NAME` that the password of a login belongs to")
	flags.StringVar(&f.encoding, "encoding", "base64", "`HOW` a key is written: base64 or hex")
	oneOf(cmd, "kind", "symmetric", "encryption", "login", "key-pair")
	oneOf(cmd, "form", "hmac", "raw")
	oneOf(cmd, "transfer", "copy", "move", "never")
	oneOf(cmd, "encoding", "base64", "hex")
	if err := cmd.RegisterFlagCompletionFunc("replace", credentialIDs); err != nil {
		panic(err) // the flag is not there
	}
	return cmd
}

func (f *importFlags) run(cmd *cobra.Command) error {
	for _, x := range [][2]string{{"kind", f.kind}, {"service", f.service}, {"subject", f.subject}} {
		if x[1] == "" {
			return control.Problemf(control.Usage, "see: kagimori credential import --help", "--%s is missing", x[0])
		}
	}
	in := agent.ImportParams{Kind: transport.CredentialKind(f.kind), Form: transport.SecretForm(f.form), Service: f.service, Subject: f.subject,
		Transfer: transport.Transfer(f.transfer), Replace: f.replace}
	var err error
	if in.Expires, err = parseDate(f.expires); err != nil {
		return err
	}
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	secret, err := f.secret(cmd)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	if in.Secret, err = c.Seal(cmd.Context(), agent.LabelCredential, secret); err != nil {
		return err
	}
	var info agent.CredentialInfo
	if err := c.Call(cmd.Context(), "com.kagimori.agent.CredentialImport", in, &info); err != nil {
		return err
	}
	return verb.Print(cmd, info, func(w io.Writer) {
		fmt.Fprintf(w, "%s is here: %s of %s at %s\n", info.ID, info.Secret, info.Subject, info.Service)
	})
}

func parseDate(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, control.Problemf(control.Usage, "write 2027-12-31 or 2027-12-31T12:00:00Z", "--expires %q is no date", s)
}

// secret reads the secret in the form that its kind is stored in.
func (f *importFlags) secret(cmd *cobra.Command) (transport.Sensitive, error) {
	switch transport.CredentialKind(f.kind) {
	case transport.KindLogin:
		if f.login == "" {
			return nil, control.Problemf(control.Usage, "name it with --login", "--login is missing")
		}
		password, err := verb.ReadSecret(cmd, "Password: ")
		if err != nil {
			return nil, err
		}
		defer password.Wipe()
		secret := make(transport.Sensitive, 0, len(f.login)+1+len(password))
		return append(append(append(secret, f.login...), '\n'), password...), nil
	case transport.KindKeyPair:
		return readPEM(cmd)
	}
	text, err := verb.ReadSecret(cmd, "Key: ")
	if err != nil {
		return nil, err
	}
	defer text.Wipe()
	return decodeKey(text, f.encoding)
}

func decodeKey(text []byte, encoding string) (secret transport.Sensitive, err error) {
	n := 0
	switch encoding {
	case "base64":
		secret = make(transport.Sensitive, base64.StdEncoding.DecodedLen(len(text)))
		n, err = base64.StdEncoding.Strict().Decode(secret, text)
	case "hex":
		secret = make(transport.Sensitive, hex.DecodedLen(len(text)))
		n, err = hex.Decode(secret, text)
	default:
		return nil, control.Problemf(control.Usage, "write base64 or hex", "--encoding %q is unknown", encoding)
	}
	if err != nil {
		secret.Wipe()
		return nil, control.Problemf(control.BadInput, "check --encoding", "the key is not in %s", encoding) // err would show a part of it
	}
	return secret[:n], nil
}

// maxPEM bounds a private key in PEM, in bytes.
const maxPEM = 2 * agent.MaxCredentialSecret

// readPEM reads a private key from standard input.
func readPEM(cmd *cobra.Command) (transport.Sensitive, error) {
	if verb.Asks(cmd) {
		return nil, control.Problemf(control.Usage, "write: kagimori credential import --kind key-pair ... < FILE", "a private key is read from standard input, not typed")
	}
	text := make(transport.Sensitive, maxPEM+1)
	defer text.Wipe()
	n, err := io.ReadFull(cmd.InOrStdin(), text)
	if err == nil {
		return nil, control.Problemf(control.BadInput, "give one private key", "more than %d bytes", maxPEM)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	block, rest := pem.Decode(text[:n])
	if block == nil || block.Type != "PRIVATE KEY" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, control.Problemf(control.BadInput, "convert it: openssl pkcs8 -topk8 -nocrypt -in FILE", "not one private key as PKCS#8 in PEM, not encrypted")
	}
	return block.Bytes, nil
}

func credentialRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove ID",
		Short:   "Destroy a credential without certificate",
		Long:    "Destroys a key, login or key pair on this terminal; copies on other terminals stay.\nWhat has a certificate is revoked at the server instead.",
		Example: "  sudo kagimori credential remove im-7q3mz5xk2a",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Call(cmd.Context(), "com.kagimori.agent.CredentialRemove", agent.CredentialParams{ID: args[0]}, nil); err != nil {
				return err
			}
			return verb.Print(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintf(w, "%s is destroyed here\n", args[0]) })
		},
	}
}
