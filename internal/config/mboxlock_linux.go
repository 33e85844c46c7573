package config

// systemMboxLock is the MBOXLOCK of the system, as Debian policy 11.6 has it.
const systemMboxLock = "fcntl"
