// Package machinetest tests dma as it is installed on a machine: as root, with
// users dma and dmanet, a setgid dma, real users with homes and mailboxes.
//
// The machine is the test's own: the test binary starts itself again in new
// namespaces for mounts, processes and the network, where /etc is a copy, and
// /home, /var/mail, /var/spool, /run and /opt are empty. Nothing that happens
// there reaches the real ones, and nothing outlives the test.
//
// Everything here is Linux's, needs root, and is skipped unless system tests
// are wanted.
package machinetest
