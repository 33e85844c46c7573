package runner

import "golang.org/x/sys/unix"

// memory returns the memory of the machine in octets, 0 if that is not known.
func memory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit)
}
