package tpm

// The numbers of the TPM 2.0 Library (Part 2, 6 and 7), those that are used here.

// A Handle names what is in a TPM: an object, a session, an NV index.
type Handle uint32

// What every TPM has.
const (
	rhOwner       Handle = 0x40000001
	rhNull        Handle = 0x40000007
	rsPassword    Handle = 0x40000009
	rhLockout     Handle = 0x4000000A
	rhEndorsement Handle = 0x4000000B
)

// Algorithms (TPM_ALG_ID, TPM_ECC_CURVE).
const (
	algHMAC      = 0x0005
	algAES       = 0x0006
	algKeyedHash = 0x0008
	algSHA256    = 0x000B
	algNull      = 0x0010
	algECDSA     = 0x0018
	algECC       = 0x0023
	algCFB       = 0x0043
	curveP256    = 0x0003
)

// Kinds of session (TPM_SE), of shutdown (TPM_SU), of capability (TPM_CAP), and
// the ticket for "not hashed here" (TPM_ST_HASHCHECK).
const (
	seHMAC        = 0x00
	sePolicy      = 0x01
	suClear       = 0x0000
	capHandles    = 0x00000001
	capProperties = 0x00000006
	stHashCheck   = 0x8024
)

// Commands (TPM_CC).
const (
	ccEvictControl               = 0x120
	ccNVUndefineSpace            = 0x122
	ccNVDefineSpace              = 0x12A
	ccCreatePrimary              = 0x131
	ccNVIncrement                = 0x134
	ccDictionaryAttackLockReset  = 0x139
	ccDictionaryAttackParameters = 0x13A
	ccShutdown                   = 0x145
	ccActivateCredential         = 0x147
	ccCertify                    = 0x148
	ccNVRead                     = 0x14E
	ccPolicySecret               = 0x151
	ccCreate                     = 0x153
	ccHMAC                       = 0x155
	ccImport                     = 0x156
	ccLoad                       = 0x157
	ccSign                       = 0x15D
	ccUnseal                     = 0x15E
	ccFlushContext               = 0x165
	ccLoadExternal               = 0x167
	ccNVReadPublic               = 0x169
	ccPolicyAuthorize            = 0x16A
	ccReadPublic                 = 0x173
	ccStartAuthSession           = 0x176
	ccVerifySignature            = 0x177
	ccGetCapability              = 0x17A
	ccPCRRead                    = 0x17E
	ccPolicyPCR                  = 0x17F
)
