import { z } from 'zod'
import { duration, readWhole, size, word } from './values.js'

/** What clients can make the server hold. */
export const limits = z
  .strictObject({
    connections: word('write a number from 10 to 1000000', (text) => readWhole(text, 10, 1_000_000))
      .prefault('4096')
      .describe(
        'How many connections there may be at a time, in all processes together; fewer where the system gives fewer file ' +
          'descriptors. When there are more, those without a request are closed, then new ones refused.',
      ),
    perAddress: word('write a number from 1 to 1000000', (text) => readWhole(text, 1, 1_000_000))
      .prefault('2048')
      .describe(
        'How many of these one client address may have, or a /64 of IPv6; from trustedProxies it counts requests under way ' +
          'for each address that they tell.',
      ),
    /** Bytes. */
    bodyMemory: size('16MiB', '1TiB')
      .prefault('64MiB')
      .describe(
        'The memory for manifests and forms that come in, in all processes together; who finds none waits, and who sends ' +
          'too slowly gives way.',
      ),
    /** Bytes. */
    answerMemory: size('16MiB', '1TiB')
      .prefault('64MiB')
      .describe(
        'The memory for manifests and lists that clients have not taken yet, in all processes together; who finds none ' +
          'waits, and who takes nothing gives way.',
      ),
  })
  .prefault({})

/** How long something may take. */
export const timeouts = z
  .strictObject({
    /** Milliseconds. */
    idle: duration('1s', '1h')
      .prefault('60s')
      .describe('How long the body of a request or an answer may stand still before its connection is cut.'),
    /** Milliseconds. */
    shutdown: duration('100ms', '1h')
      .prefault('30s')
      .describe('How long requests may take to finish after the server was told to stop.'),
  })
  .prefault({})
