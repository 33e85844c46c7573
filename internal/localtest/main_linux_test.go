package localtest

import (
	"testing"

	"dma/internal/peertest"
)

func TestMain(m *testing.M) { peertest.Main(m) }
