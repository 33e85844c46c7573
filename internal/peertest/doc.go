// Package peertest runs the programs of other projects in tests: a root
// directory with Debian's packages unpacked in it, never installed, and
// namespaces of the test's own for its processes, ports, mounts and host name.
//
// [Main] is the body of a TestMain. It has the packages downloaded and unpacked
// once for all test programs (the cache is shared, under a lock), then starts
// the test binary again as a process of new pid, network, mount, UTS and IPC
// namespaces. There port 25 is free, 127.0.0.1 is the only network, and nothing
// outlives the test. [NewRoot] gives a test a writable view of the unpacked
// packages, with the users and files that their installation would have made.
//
// It needs Linux, root and apt-get, and runs with CI=true or DMA_SYSTEM_TESTS=1.
package peertest
