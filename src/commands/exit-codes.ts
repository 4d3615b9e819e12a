/** How processes of the server end that must not go on. */
export const exitCodes = {
  /** Something did not end when the server was told to stop. */
  stoppedLate: 1,
  /** The index is damaged: a restart does not help. */
  indexDamaged: 65,
  /** The index could not be written: a restart may help. */
  indexUnwritable: 70,
} as const
