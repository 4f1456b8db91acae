package file_test

import (
	"encoding/hex"

	"github.com/kagimori/kagimori/hsm"
)

// golden are blobs of format 1 under a device secret of 32 bytes 0x2a.
var golden = map[string]hsm.Blob{
	"secret": unhex("01010196ebafe9ca3a3d371a2c2b01374fd21b6e4157b257a0115e25f72e18400f18ba000000352c7579223648528a58071b" +
		"36aa1c1d52939af34e4d53117b51460a2d27ae8da3ba5f4dddc8b1daec73bb2ce83422171f50a6d00790"),
	"key": unhex("01010296ebafe9ca3a3d371a2c2b01374fd21b6e4157b257a0115e25f72e18400f18ba0041043781220b022589b76486a51cc8" +
		"0e60a38fd3ccf903c2fc6c6e84b57774a699e682d48991dfab18f01426bdb75a8ef49b977492691f6af1b16c859afd16656b7f004856" +
		"e6508d32739a12a995fbef6ed8d541bf150c317f82bcd070e2b3575ca51a970b397ceb2b77f8b53e14dd0bde4c699cc474e0ea08fe61" +
		"3b925bc9f0429310cdf2b56461aa2e392b"),
	"MAC key": unhex("01010396ebafe9ca3a3d371a2c2b01374fd21b6e4157b257a0115e25f72e18400f18ba00000048871b53b570a2bdabb579" +
		"cdfc90a4200e76deb9905b63451e75597c7451993c5a5d5e67025cebfa9ae60befd8eb0d87ac094c8b46e4708fee069fbeff771e1223" +
		"20fc0ab871ee164a"),
}

// goldenKeyring is a keyring of version 1 around a root key of 32 bytes 0x2a.
var goldenKeyring = unhex("4b474b4559524e4701010200004c001780426a25f53c2b2c8d93c67baf1bfb3badcbc6637d045af745dbe44ec94be7ee8bf9" +
	"5eacab7109cb5075590f439f59edb91e0c6c913cbbd6bd93489bee4d9cb943cc8285ae0fe483e8c5b0ba666c2ded85590e6b" +
	"c2eda3520fb3d3b72d2a9d395d6a5d2bc0977008e7dd0fd8b75781d19b5e1a921d9be20ea81bf6ee59873cea8a781e80e226" +
	"5610d5eb1e8b9c81793e47c83b4bf22ef4")

func unhex(s string) hsm.Blob {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
