package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Proof of a TPM at enrollment, the terminal's side (DESIGN D8, req: L3);
// transport/enroll_attest.go says what the messages are. The security code that
// comes with the answer passes through as it is: only the chip can open it.

// attestTime is how long an enrollment may take that includes a proof: a slow
// chip makes an RSA key in a minute.
const attestTime = 2 * time.Minute

// prover is key storage that can prove what it is, and the identity key in it.
type prover struct {
	chip     hsm.Attester
	identity hsm.Blob
}

// proof is how far a proof is.
type proof struct {
	third    []byte   // body (3) as sent
	ak       hsm.Blob // nil until the evidence was made
	evidence []byte   // body (3b) as sent
	over     bool     // the challenge was opened
}

// attest shows what the chip is. (3a) → (3b)
func (e *enrollment) attest(ctx context.Context, env *transport.Envelope) ([]byte, error) {
	if _, err := transport.Open[transport.EnrollAttest](env); err != nil || e.proof.ak != nil {
		return nil, fmt.Errorf("enroll: asked for proof of a TPM once more: %w", errors.Join(err, transport.ErrMalformed))
	}
	if e.prover == nil {
		return e.cannotProve(fmt.Errorf("this terminal keeps its keys in %q", e.level),
			"keep its keys in a TPM ([hsm] kind = \"tpm\") and provision it anew, or have an administrator remove and add it without --attest")
	}
	nonce := transport.EnrollAttestNonce(e.exporter, e.first, e.second, e.proof.third)
	shown, ak, err := e.prover.chip.Evidence(ctx, e.prover.identity, nonce)
	if errors.Is(err, hsm.ErrEndorsement) {
		return e.cannotProve(err, "this TPM cannot be proven: use a board whose TPM has its maker's certificate, or have an administrator remove and add this terminal without --attest")
	}
	if err != nil {
		problem, _ := storageProblem(err)
		return nil, fmt.Errorf("enroll: %w", problem)
	}
	e.proof.ak = ak
	payload, sent, err := packKeeping(e.random, &transport.EnrollEvidence{
		Endorsement: shown.Endorsement, Chain: shown.Chain, EK: shown.EK, AK: shown.AK, Root: shown.Root, Identity: shown.Identity,
		RootProof: transport.EnrollProof(shown.RootProof), IdentityProof: transport.EnrollProof(shown.IdentityProof),
	})
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	if len(payload) > transport.MaxAttestEnvelope {
		return nil, fmt.Errorf("enroll: evidence of %d bytes, the limit is %d", len(payload), transport.MaxAttestEnvelope)
	}
	e.proof.evidence = sent
	return payload, nil
}

// cannotProve ends the conversation, and tells the server why, for its log.
func (e *enrollment) cannotProve(why error, next string) (last []byte, err error) {
	text := why.Error()
	last, _, packErr := packKeeping(e.random, &transport.Fault{Code: transport.FaultAttest, Text: text[:min(len(text), transport.MaxDetail)]})
	return last, errors.Join(packErr, control.Problemf(control.Refused, next, "terminal %s must prove a TPM to enroll: %w", e.terminal, why))
}

// activate has the chip open what only it can. (3c) → (3d)
func (e *enrollment) activate(ctx context.Context, env *transport.Envelope) ([]byte, error) {
	m, err := transport.Open[transport.EnrollActivate](env)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	if e.proof.ak == nil || e.proof.over {
		return nil, fmt.Errorf("enroll: a challenge that was not expected: %w", transport.ErrMalformed)
	}
	secret, err := e.prover.chip.Activate(ctx, e.proof.ak, hsm.Challenge{Credential: m.Credential, Secret: m.Secret})
	if err != nil {
		problem, _ := storageProblem(err)
		return nil, fmt.Errorf("enroll: %w", problem)
	}
	defer secret.Wipe()
	e.proof.over = true
	payload, _, err := packKeeping(e.random, &transport.EnrollActivated{
		MAC: transport.EnrollActivatedMAC(e.commonKey, secret.Bytes(), e.exporter, e.first, e.second, e.proof.third, e.proof.evidence, env.Body),
	})
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	return payload, nil
}

// checkCode looks at the security code that came with the certificate.
func (e *enrollment) checkCode(c *transport.WrappedCode) error {
	if c == nil {
		return nil
	}
	if !e.proof.over {
		return fmt.Errorf("a wrapped security code without a proof: %w", transport.ErrMalformed)
	}
	return (&transport.CodeInstall{Group: c.Group, Epoch: c.Epoch, Wrapped: c}).Check()
}

// takeCode has the chip take in the security code that was wrapped to it; nil
// stays nil.
func (v *vault) takeCode(ctx context.Context, self *terminalRecord, c *transport.WrappedCode) (*heldCode, error) {
	if c == nil {
		return nil, nil
	}
	chip, ok := v.module.(hsm.Attester)
	if !ok || c.Group != self.Group {
		return nil, fmt.Errorf("a security code of group %s for key storage %q of group %s", c.Group, v.module.Level(), self.Group)
	}
	blob, err := chip.ImportWrapped(ctx, hsm.Wrapped{Public: c.Public, Duplicate: c.Duplicate, Seed: c.Seed})
	if err != nil {
		problem, _ := storageProblem(err)
		return nil, fmt.Errorf("take in the security code: %w", problem)
	}
	return &heldCode{c.Epoch, blob}, nil
}
