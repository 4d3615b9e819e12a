import { switchEverythingOn } from './everything.js'

/* What the clients send, as in sequences.test.ts, with every feature switched on and the mirror's upstream away. */

switchEverythingOn('down')
await import('./sequences.test.js')
