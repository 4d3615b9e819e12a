import { z } from 'zod'
import { readSchedule } from './mirror-values.js'
import { duration, readRate, readWhole, word } from './values.js'

/** How what is stored is verified. */
export const verify = z
  .strictObject({
    /** Bytes a second; Infinity without a bound. */
    rate: word('write bytes a second such as 50MiB (at least 1KiB), or unlimited', readRate)
      .prefault('50MiB')
      .describe(
        'How many bytes a second a verification of what is stored reads; unlimited is as fast as it goes.',
      ),
    /** A cron expression, or never. */
    schedule: word(
      'write a cron expression such as 0 3 * * 0 (minute, hour, day, month, weekday), or never',
      (text) => (text === 'never' ? text : readSchedule(text)),
    )
      .prefault('30 3 1 * *')
      .describe(
        'When the server verifies everything that is stored, as a cron expression in local time, and at its start ' +
          'when that was missed; with never, only the command boathouse verify does.',
      ),
  })
  .prefault({})

/** Copies of the index. */
export const snapshots = z
  .strictObject({
    /** Milliseconds. */
    interval: duration('100ms', '24d')
      .prefault('1h')
      .describe('How long the server waits from one copy of the index in the data folder to the next.'),
    keep: word('write a number from 0 to 1000', (text) => readWhole(text, 0, 1000))
      .prefault(24)
      .describe('How many of these copies stay, the newest ones; 0 makes none but those before a migration.'),
  })
  .prefault({})
