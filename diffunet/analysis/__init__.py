"""What a network is made of and how it behaves: costs, memory, receptive field, aliasing, gradients, a drawing."""
