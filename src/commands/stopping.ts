/** One thing that ends at a stop, and what people call it. */
export type StopStep = readonly [name: string, end: () => Promise<void>]

/**
 * Ends one thing after the other.
 * @param patience milliseconds that all of it may take
 * @param onLate hears once what did not end in time; the steps go on being waited for
 * @throws what a step throws
 */
export async function stopInOrder(
  steps: readonly StopStep[],
  patience: number,
  onLate: (name: string) => void,
): Promise<void> {
  let current = ''
  const timer = setTimeout(() => onLate(current), patience)
  try {
    for (const [name, end] of steps) {
      current = name
      await end()
    }
  } finally {
    clearTimeout(timer)
  }
}
