//go:build !linux

package parent

import "dma/internal/wire"

func olderKernel(*wire.Conn) {}
