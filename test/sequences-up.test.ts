import { switchEverythingOn } from './everything.js'

/* What the clients send, as in sequences.test.ts, with every feature switched on and the mirror's upstream up. */

switchEverythingOn('up')
await import('./sequences.test.js')
