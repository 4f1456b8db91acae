package transport

// Every bound on what comes from outside, in bytes unless said otherwise.
const (
	// MaxEnvelope bounds one MQTT payload of an enrolled terminal.
	MaxEnvelope = 64 << 10
	// MaxEnrollEnvelope bounds one MQTT payload before enrollment (D8).
	MaxEnrollEnvelope = 4 << 10
	// MaxAttestEnvelope bounds one MQTT payload before enrollment of a terminal
	// that has proven its common key and is asked to prove its TPM: four
	// certificates of MaxCertificate, and what is signed.
	MaxAttestEnvelope = 20 << 10
	// MaxBundle bounds a provisioning bundle, sealed.
	MaxBundle = 64 << 10
	// MaxName is the length of a name in characters (a DNS label's).
	MaxName = 63
	// MaxChain is how many certificates a chain may have.
	MaxChain = 4
	// MaxCertificate bounds one DER certificate or CSR.
	MaxCertificate = 4 << 10
	// MaxPushedCRL is the largest CRL that travels in a message; a larger one
	// is announced and fetched over HTTP.
	MaxPushedCRL = 32 << 10
	// MaxCRL bounds any CRL: about 200,000 entries.
	MaxCRL = 8 << 20

	// maxElements and maxDepth bound a CBOR item's arrays, maps and nesting.
	maxElements = 4096
	maxDepth    = 8
)
