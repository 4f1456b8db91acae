package transport

// ServiceRevoked tells a gate the current list of revoked credentials, signed by
// the service CA, and a terminal that of revoked gates, signed by the server CA
// (RFC 5280 CRL in DER). CRL is empty when it is larger than MaxPushedCRL: then
// a gate fetches it from URL; a terminal, which fetches nothing, notes that it
// does not know it. It is sent on connect and at every change. Issuer is the CA
// that signed the list, which no other message tells a gate: its own
// certificates come from the two other issuing CAs (DESIGN D7).
type ServiceRevoked struct {
	Number int64  `cbor:"1,keyasint"`
	URL    string `cbor:"2,keyasint"`
	CRL    []byte `cbor:"3,keyasint"`
	Issuer []byte `cbor:"4,keyasint"` // DER certificate
}

// Type implements Body.
func (*ServiceRevoked) Type() string { return "service.revoked" }
