package transport

// ServiceRevoked tells a gate the current list of revoked service certificates
// (RFC 5280 CRL in DER). CRL is empty when it is larger than MaxPushedCRL: then
// the gate fetches it from URL. It is sent on connect and at every change.
// Issuer is the CA that signed the list, which no other message tells a gate:
// its own certificates come from the two other issuing CAs (DESIGN D7).
type ServiceRevoked struct {
	Number int64  `cbor:"1,keyasint"`
	URL    string `cbor:"2,keyasint"`
	CRL    []byte `cbor:"3,keyasint"`
	Issuer []byte `cbor:"4,keyasint"` // DER certificate
}

// Type implements Body.
func (*ServiceRevoked) Type() string { return "service.revoked" }
