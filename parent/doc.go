// Package parent is the one process of dma with privilege: uid 0, and of its
// capabilities CAP_SETUID, CAP_SETGID and CAP_KILL, with CAP_CHOWN where mail
// directories are not writable for the mailbox writers. It starts the queue
// process, the net process and the agents of users, and nothing else, by
// executing its own program again. It reads no mail, no .forward and no reply.
//
// # What a process is started with
//
// An empty environment but for PATH, TZ and LANG if the parent has them, and for
// the workers Options.Env; the directory "/", umask 077, no core, a session of its
// own, and these descriptors:
//
//	0, 1  /dev/null; for the process of Inspect 1 is what its caller wants
//	2     standard error of the parent, of a terminal only to be written to; for
//	      agents /dev/null
//	3     control: to the parent; for agents to the queue process
//	4     setup, to be read to the end
//	5     life: ends when the parent has gone or wants an end
//	6     queue: the listening socket of the door, or /dev/null; net: /dev/null
//	      agents: the open file of the user's lock, which only has to be held
//	7     queue: the end of a pipe to write to, net: the one to read from. One
//	      octet says: forget what you know about hosts that are down
//	      agents: root's mailbox, for the one that writes it
//	8     the ends of a pipe in the other direction: what net has to report
//
// The first argument says what to be: RoleQueue, RoleNet or RoleAgent. RoleInspect
// is the queue process of Inspect, of which 6 to 8 are /dev/null, as is 6 of its agents.
//
// The parent holds both ends of the pipes too. They do not end when a worker
// does. An octet that finds no room says nothing new.
//
// # What the workers may ask
//
// The control socket carries frames of package wire: a number of four octets,
// one octet that says what it is, and fields with a NUL between them. Requests
// hold a name of a user and nothing about what is to be done for that user: no
// path, no command, no uid to run as. No worker sends a descriptor either, which
// could be one that hangs whoever touches it; the queue process gets the connection
// to an agent with the answer. Answers carry the number of the request
// and may come in another order. Who sends anything else is killed and started
// again after a pause.
package parent
