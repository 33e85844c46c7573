// Package fsid lets root use files with the rights of another user, in a thread
// of its own: not with more, and not with less where root has no right to pass
// closed doors, as in a container or below a service manager that takes
// CAP_DAC_OVERRIDE away. The process stays root's for those who would trace it or
// send it signals. It needs CAP_SETUID and CAP_SETGID.
package fsid
