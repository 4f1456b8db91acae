package broker

const floodChild = "KAGIMORI_BROKER_TEST"

func runFloodChild() int { return 0 }
